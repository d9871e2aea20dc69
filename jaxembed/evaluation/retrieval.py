"""Retrieval: every query against the whole corpus, exactly."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxembed import search, types
from jaxembed.embedder import Embedder
from jaxembed.evaluation import metrics


def evaluate(embedder: Embedder, corpus: Mapping[str, str],
             queries: Mapping[str, str], qrels: metrics.Qrels, *,
             cutoffs: Sequence[int] = metrics.CUTOFFS, batch_size: int = 32,
             truncate_dim: int | None = None, drop_same_id: bool = False,
             show_progress_bar: bool | None = None) -> dict[str, float]:
  """metrics.retrieval of an embedder, by cosine.

  Queries get the prompt 'query' and documents theirs, where the model has them.
  Unjudged queries are not encoded.

  Args:
    corpus: texts by document id.
    queries: texts by query id.
    qrels: gains by query id and document id.
    cutoffs: ranks at which to cut; the largest is how deep is searched.
    drop_same_id: a document whose id is the query's does not count, for sets
      whose queries are documents themselves (ArguAna, Quora).

  Raises:
    ValueError: qrels name a query that is not there, or nothing is judged.
  """
  if missing := [q for q in qrels if q not in queries]:
    raise ValueError(f'{len(missing)} judged queries are not among the queries, '
                     f'first {missing[0]!r}; queries and qrels belong to two sets')
  wanted = {q: queries[q] for q in qrels}
  settings = {'batch_size': batch_size, 'truncate_dim': truncate_dim,
              'show_progress_bar': show_progress_bar}
  documents = embedder.encode_document(list(corpus.values()), **settings)
  found = rank(
      list(wanted), embedder.encode_query(list(wanted.values()), **settings),
      list(corpus), documents, depth=max(cutoffs), drop_same_id=drop_same_id,
      mesh=embedder.mesh)
  return metrics.retrieval(qrels, found, cutoffs)


def rank(query_ids: Sequence[str], queries: types.Array,
         document_ids: Sequence[str], documents: types.Array, *, depth: int,
         drop_same_id: bool = False, mesh=None) -> metrics.Run:
  """The `depth` nearest documents of each query, with their scores.

  queries [Q,E], documents [C,E]; ids name their rows. A corpus smaller than
  `depth` is ranked whole.
  """
  # One more than asked for where one may fall out.
  k = min(depth + bool(drop_same_id), len(document_ids))
  scores, rows = search.top_k(queries, documents, k, mesh=mesh)
  ids = np.asarray(document_ids, dtype=object)
  run = {}
  for query, row, score in zip(query_ids, rows, scores):
    found = dict(zip(ids[row], score.tolist()))
    if drop_same_id:
      found.pop(query, None)
    run[query] = found
  return run
