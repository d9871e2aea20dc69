"""Retrieval evaluation: every query ranks the whole corpus, exactly."""

from collections.abc import Mapping, Sequence
import warnings

import jax
import numpy as np

from jaxembed import search, types
from jaxembed.embedder import Embedder
from jaxembed.evaluation import metrics


def evaluate(embedder: Embedder, corpus: Mapping[str, str],
             queries: Mapping[str, str], qrels: metrics.Qrels, *,
             cutoffs: Sequence[int] = metrics.CUTOFFS, batch_size: int = 32,
             truncate_dim: int | None = None, drop_same_id: bool = True,
             query_prompt_name: str | None = None, query_prompt: str | None = None,
             document_prompt_name: str | None = None,
             document_prompt: str | None = None,
             show_progress_bar: bool | None = None) -> dict[str, float]:
  """Retrieval measures of an embedder, by its own similarity function.

  Queries get the model's prompt for queries and documents that for documents
  (Embedder.encode_query, encode_document). Unjudged queries are not encoded. Judged
  documents that the corpus lacks count in the ideal ranking, as in BEIR and MTEB.

  Args:
    corpus: texts by document id.
    queries: texts by query id.
    qrels: gains by query id and document id.
    cutoffs: ranks at which to cut; the largest is how deep is searched.
    drop_same_id: a document whose id is the query's is left out of its ranking, as
      BEIR does (ignore_identical_ids), for sets whose queries are documents
      themselves (ArguAna, Quora).
    query_prompt_name, query_prompt, document_prompt_name, document_prompt: instead
      of the model's own choice, as in Embedder.encode.

  Raises:
    ValueError: qrels name a query that is not there, nothing is judged, or the
      corpus is empty.
  """
  metrics.check_cutoffs(cutoffs)
  _check_ids(corpus, queries, qrels, drop_same_id)
  wanted = {q: queries[q] for q in qrels}
  settings = {'batch_size': batch_size, 'truncate_dim': truncate_dim,
              'show_progress_bar': show_progress_bar}
  asked = embedder.encode_query(list(wanted.values()), query_prompt_name, query_prompt,
                                **settings)
  documents = embedder.encode_document(
      list(corpus.values()), document_prompt_name, document_prompt, **settings)
  found = rank(list(wanted), asked, list(corpus), documents, depth=max(cutoffs),
               drop_same_id=drop_same_id, mesh=embedder.mesh,
               similarity=embedder.similarity_fn_name)
  return metrics.retrieval(qrels, found, cutoffs)


def rank(query_ids: Sequence[str], queries: types.Array, document_ids: Sequence[str],
         documents: types.Array, *, depth: int, drop_same_id: bool = False,
         mesh: jax.sharding.Mesh | None = None, similarity: str = 'cosine'
         ) -> metrics.Run:
  """The `depth` nearest documents of each query, with their scores.

  queries [Q,E], documents [C,E]; ids name their rows. A corpus smaller than
  `depth` is ranked whole.
  """
  # One more than asked for where one may fall out.
  k = min(depth + bool(drop_same_id), len(document_ids))
  scores, rows = search.top_k(queries, documents, k, mesh=mesh, similarity=similarity)
  ids = np.asarray(document_ids, dtype=object)
  run = {}
  for query, row, score in zip(query_ids, rows, scores):
    found = dict(zip(ids[row], score.tolist()))
    if drop_same_id:
      found.pop(query, None)
    run[query] = found
  return run


def _check_ids(corpus, queries, qrels, drop_same_id: bool):
  """Refuses what cannot be scored, and tells what is scored in a way to know of."""
  if not corpus:
    raise ValueError('the corpus is empty; there is nothing to find')
  if not qrels:
    raise ValueError('no judged queries: the qrels are empty')
  if missing := [q for q in qrels if q not in queries]:
    raise ValueError(f'{len(missing)} judged queries are not among the queries, '
                     f'first {missing[0]!r}; queries and qrels belong to two sets')
  absent = [(q, d) for q, judged in qrels.items() for d in judged if d not in corpus]
  if absent:
    warnings.warn(
        f'{len(absent)} judgements name documents that the corpus does not have '
        f'(first: query {absent[0][0]!r}, document {absent[0][1]!r}); they count in '
        'the ideal ranking, as in BEIR and MTEB', stacklevel=3)
  if drop_same_id and (same := [q for q in qrels if q in corpus]):
    warnings.warn(
        f'{len(same)} queries have the id of a document (first {same[0]!r}), which is '
        'left out of their own ranking, as BEIR does; drop_same_id=False keeps it',
        stacklevel=3)
