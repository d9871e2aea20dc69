"""Vectors of a model that has moved on, encoded again where it can matter.

A document whose vector moved by at most `bound` since it was encoded scores at most
q.v + |q| bound now. Where that is below the k-th best new score of every query, it is
among no query's k best, and its old vector stays. What is left over is encoded, so the
candidates are those of a full re-mining as long as the bound holds. That nothing moves
further cannot be known without encoding everything. The bound is the largest movement
of a random sample and of all that is encoded again, times a margin: of 512 sampled, at
most 0.6% of all documents move further than the furthest of them, with 95% confidence,
and a margin leaves that share room.
"""

from collections.abc import Iterator
import dataclasses
import pathlib

import numpy as np

from jaxembed import corpus, search, store
from jaxembed.embedder import Embedder
from jaxembed.files.vector_file import refuse_other
from jaxembed.mining import collection
from jaxembed.mining.collection import Collection
from jaxembed.search import tiles
from jaxembed.store import VectorStore, codes

_SAMPLE = 512  # documents that say how far vectors moved
_MARGIN = 1.5  # of the bound above the largest movement that was seen


@dataclasses.dataclass(frozen=True)
class Refreshed:
  """New vectors of a run's texts.

  Attributes:
    queries, documents: the stores; of documents that were not encoded again the old
      vectors.
    encoded: documents that were.
    bound: how far the others are taken to have moved at most.
    moved: how far one of the encoded did.
  """

  queries: VectorStore
  documents: VectorStore
  encoded: int
  bound: float
  moved: float


def refresh(texts: Collection, embedder: Embedder, queries: VectorStore,
            documents: VectorStore, target: pathlib.Path, *, depth: int,
            batch_size: int = 32, sample: int = _SAMPLE, margin: float = _MARGIN,
            seed: int = 0) -> Refreshed:
  """Writes target/queries and target/documents by the model as it is now.

  Args:
    queries, documents: vectors of the same texts by the same model before.
    depth: the k of the search that follows.
    sample, seed: documents that are encoded to see how far vectors moved.
    margin: how much further than these the others are allowed to have moved.

  Raises:
    ValueError: similarities are no products, or `target` holds vectors of other
      weights.
  """
  if embedder.similarity_fn_name not in ('dot', 'cosine'):
    raise ValueError(f'similarity {embedder.similarity_fn_name!r} has no such bound; '
                     'mine anew instead')
  work = {'model': embedder.vector_fingerprint(), 'before': documents.work['model'],
          'depth': depth, 'sample': sample, 'margin': margin, 'seed': seed}
  if (target / 'documents').exists():
    return _found(target, work)
  encode = _Encoder(texts, embedder, documents, batch_size)
  asked = encode.queries(queries)
  rng = np.random.default_rng(seed)
  first = rng.choice(len(documents), min(sample, len(documents)), replace=False)
  encode.documents(np.union1d(first, texts.positives))
  k = min(depth, len(documents))
  _, near = search.top_k(asked, documents, k)
  encode.documents(np.unique(near))
  while True:
    bound = margin * encode.moved
    # At least k documents of each query are encoded: the k best by old vectors.
    numbers, vectors = encode.known()
    least = search.top_k(asked, vectors, k)[0][:, -1]
    lacking = _reaching(asked, documents, least, bound, encode.has)
    encode.documents(lacking)
    if margin * encode.moved <= bound or not len(lacking):
      break
  numbers, vectors = encode.known()
  made = {'encoded': len(numbers), 'bound': bound, 'moved': encode.moved}
  return Refreshed(
      _written(target / 'queries', queries.work | work, asked, queries.dtype),
      _written(target / 'documents', documents.work | work | {'made': made},
               _Mixed(documents, numbers, vectors), documents.dtype), **made)


class _Encoder:
  """Vectors by the model as it is now, each document's once."""

  def __init__(self, texts: Collection, embedder: Embedder, before: VectorStore,
               batch_size: int):
    self._texts, self._embedder, self._before = texts, embedder, before
    self._batch_size = batch_size
    self.has = np.zeros(len(before), bool)
    self.moved = 0.0
    self._parts: list[tuple[np.ndarray, np.ndarray]] = []

  def queries(self, before: VectorStore) -> np.ndarray:
    return self._encoded(self._texts.queries, range(len(self._texts.queries)), before)

  def documents(self, numbers: np.ndarray) -> None:
    """Encodes those that are not yet."""
    numbers = numbers[~self.has[numbers]]
    if not len(numbers):
      return
    found = self._encoded(self._texts.documents, numbers, self._before)
    before = self._before.rows(numbers)
    self.moved = max(self.moved, float(np.linalg.norm(found - before, axis=1).max()))
    self.has[numbers] = True
    self._parts.append((numbers, found))

  def known(self) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, ascending; vectors) of all that is encoded."""
    numbers = np.concatenate([n for n, _ in self._parts])
    order = np.argsort(numbers)
    return numbers[order], np.concatenate([v for _, v in self._parts])[order]

  def _encoded(self, rows, numbers, like: VectorStore) -> np.ndarray:
    return corpus.encode_like(
        like, self._embedder, list(collection.texts(rows, numbers)), self._batch_size)


class _Mixed:
  """Old vectors with new ones in the place of some."""

  def __init__(self, before: VectorStore, numbers: np.ndarray, vectors: np.ndarray):
    self._before, self._numbers, self._vectors = before, numbers, vectors
    self.shape = before.shape

  def __getitem__(self, rows: slice) -> np.ndarray:
    found = np.array(self._before[rows])
    first, last = np.searchsorted(self._numbers, (rows.start, rows.stop))
    found[self._numbers[first:last] - rows.start] = self._vectors[first:last]
    return found


def _reaching(queries: np.ndarray, documents: VectorStore, least: np.ndarray,
              bound: float, has: np.ndarray) -> np.ndarray:
  """Documents that are not encoded and could score `least` [Q] of some query."""
  reach = least - bound * np.linalg.norm(queries, axis=1)
  found = []
  for start, block in _blocks(documents):
    could = np.zeros(len(block), bool)
    for first in range(0, len(queries), tiles.QUERIES):
      part = slice(first, first + tiles.QUERIES)
      could |= (queries[part] @ block.T >= reach[part, None]).any(0)
    found.append(start + np.flatnonzero(could & ~has[start:start + len(block)]))
  return np.concatenate(found)


def _blocks(vectors) -> Iterator[tuple[int, np.ndarray]]:
  size = tiles.block(search.MEMORY, vectors.shape[1])
  for start in range(0, vectors.shape[0], size):
    yield start, vectors[slice(start, min(start + size, vectors.shape[0]))]


def _written(target: pathlib.Path, work: dict, vectors, dtype: str) -> VectorStore:
  rows, width = vectors.shape
  with store.Writer(target, work, rows, width, dtype, shard_rows=rows,
                    overwrite=target.with_name(target.name + '.partial').exists()
                    ) as writer:
    for shard in writer.shards():
      for start, block in _blocks(vectors):
        if start >= shard.done:
          shard.append(codes.encode(block, dtype))
      shard.finish()
    writer.finish()
  return store.open(target)


def _found(target: pathlib.Path, work: dict) -> Refreshed:
  """What an earlier call has written."""
  queries, documents = (store.open(target / name) for name in ('queries', 'documents'))
  made = {name: documents.work.get(name) for name in work}
  if made != work:
    refuse_other(f'{target} holds vectors', made, work)
  return Refreshed(queries, documents, **documents.work['made'])
