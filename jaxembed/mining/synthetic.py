"""New pairs from a language model's answers, kept where retrieval agrees with them."""

from collections.abc import Iterable, Iterator
import dataclasses
import json
import os
import pathlib
import re

import numpy as np

from jaxembed import corpus, search, similarity, store
from jaxembed.embedder import Embedder
from jaxembed.files import place, whole_file
from jaxembed.mining import collection, language_model
from jaxembed.mining.collection import Collection

_FENCED = re.compile(r'```(?:json)?\s*(.*?)```', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Pair:
  """A query, its answer, and '' or what looks like one."""

  query: str
  positive: str
  negative: str = ''


@dataclasses.dataclass
class Count:
  """What became of answers: how many held no pairs, and why pairs were left out."""

  answers: int = 0
  without_pairs: int = 0
  pairs: int = 0
  repeated: int = 0
  not_found: int = 0  # its positive is not within the top k of its query
  negatives_dropped: int = 0  # scored above the positive
  kept: int = 0


def parse(answer: str) -> list[Pair]:
  """The pairs of one answer; what is none is left out.

  The answer is {"pairs": [...]} or a list, maybe in a fence or with words around it.
  """
  fenced = _FENCED.search(answer)
  text = fenced[1] if fenced else answer
  found = _json(text)
  rows = found.get('pairs') if isinstance(found, dict) else found
  pairs = []
  for row in rows if isinstance(rows, list) else ():
    row = row if isinstance(row, dict) else {}
    query, positive, negative = (
        _clean(row.get(name)) for name in ('query', 'positive', 'negative'))
    if query and positive and collection.key(query) != collection.key(positive):
      same = collection.key(negative) == collection.key(positive)
      pairs.append(Pair(query, positive, '' if same else negative))
  return pairs


@place.remote(reads=('answers',), writes=('target',))
def take(texts: Collection, embedder: Embedder, teacher: str,
         answers: str | os.PathLike, target: str | os.PathLike, *, top: int = 10,
         batch_size: int = 32, overwrite: bool = False) -> Count:
  """Writes the new pairs that retrieve their own positive within the top `top`.

  The query ranks the run's documents and all new positives, by the vectors of
  `teacher`, which `embedder` made. Rows are {"query", "pos": [...], "neg": [...]}.

  Raises:
    FileExistsError: the file is there.
    ValueError: `embedder` is not the model of the run's vectors, or no answer holds a
      pair.
  """
  target = pathlib.Path(target)
  whole_file.refuse_existing(target, overwrite)
  folder = texts.folder / 'vectors' / teacher
  queries, documents = (store.open(folder / name) for name in ('queries', 'documents'))
  if documents.work['model'] != embedder.vector_fingerprint():
    raise ValueError(f'{folder} was made by another model; give the --model that '
                     'searched')
  count = Count()
  pairs = list(_new(texts, language_model.contents(answers), count))
  if not pairs:
    raise ValueError(f'{answers}: none of {count.answers} answers holds a new pair')
  function = embedder.similarity_fn_name
  asked = corpus.encode_like(queries, embedder, [p.query for p in pairs], batch_size)
  found = corpus.encode_like(
      documents, embedder, [p.positive for p in pairs], batch_size)
  rank, own = _ranks(asked, found, documents, top, function)
  near = np.full(len(pairs), -np.inf)
  if have := [n for n, p in enumerate(pairs) if p.negative]:
    near[have] = similarity.pairwise(function, asked[have], corpus.encode_like(
        documents, embedder, [pairs[n].negative for n in have], batch_size))
  with whole_file.opened(target) as file:
    for n, pair in enumerate(pairs):
      if rank[n] >= top:
        count.not_found += 1
        continue
      good = bool(pair.negative and near[n] < own[n])
      count.negatives_dropped += bool(pair.negative) and not good
      count.kept += 1
      file.write(json.dumps({
          'query': pair.query, 'pos': [pair.positive],
          'neg': [pair.negative] * good}, ensure_ascii=False) + '\n')
  return count


def _new(texts: Collection, answers: Iterable[tuple[str, str, str]], count: Count
         ) -> Iterator[Pair]:
  """Pairs whose query is none of the run's, and none of another pair."""
  known = set(texts.query_keys.tolist())
  for _, answer, _ in answers:
    count.answers += 1
    pairs = parse(answer)
    count.without_pairs += not pairs
    for pair in pairs:
      count.pairs += 1
      own = collection.key(pair.query)
      if own in known:
        count.repeated += 1
        continue
      known.add(own)
      yield pair


def _ranks(queries: np.ndarray, positives: np.ndarray, documents: store.VectorStore,
           top: int, function: str) -> tuple[np.ndarray, np.ndarray]:
  """(how many score above a query's own positive, at most about 2 top; its score)."""
  own = similarity.pairwise(function, queries, positives)
  above = np.zeros(len(queries), np.int64)
  for among in (documents, positives):
    scores, rows = search.top_k(queries, among, min(top + 1, len(among)),
                                similarity=function)
    other = (rows != np.arange(len(queries))[:, None]) if among is positives else True
    # Equal texts score equally but for rounding; only what is clearly above counts.
    above += ((scores > own[:, None] + 1e-6) & other).sum(1)
  return above, own


def _json(text: str):
  """The first JSON object or list in a text."""
  for start in sorted(text.find(c) for c in '{[' if c in text):
    try:
      return json.JSONDecoder().raw_decode(text[start:])[0]
    except (ValueError, RecursionError):
      continue
  return None


def _clean(text) -> str:
  """A text that a tokenizer can read, without blanks around it; '' for what is none."""
  if not isinstance(text, str):
    return ''
  return text.encode('utf-8', 'ignore').decode().strip()
