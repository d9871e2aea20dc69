"""Search on the cores of this host: matrix products, and what beats the k-th best.

XLA's top_k on a CPU sorts; of a block's scores few beat the k best so far, and a
comparison finds them.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np

from jaxembed.search import tiles


def suits(mesh: jax.sharding.Mesh | None, similarity: str) -> bool:
  """Whether this is the place for a search."""
  return (mesh is None and jax.default_backend() == 'cpu'
          and similarity in ('dot', 'cosine'))


def product(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
  """Dot products.  [Q,E], [C,E] -> [Q,C] float32."""
  return queries @ documents.T


def top_k(queries, corpus, k: int, block: int, tile: Callable,
          score: Callable[[Any, Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """The k best corpus rows of every query: scores [Q,k], rows [Q,k] int32.

  Args:
    tile: (rows, start, size, what) -> arrays of that many rows, or fewer at the end.
    score: (queries, documents) -> [Q,C] float32 of two such tiles.
  """
  count, size = len(queries), tiles.QUERIES
  asked = [tile(queries, start, size, 'query') for start in range(0, count, size)]
  best = [_Best(min(size, count - start), k) for start in range(0, count, size)]
  blocks = ((start, lambda start=start: tile(corpus, start, block, 'corpus'))
            for start in range(0, len(corpus), block))
  for start, documents in _ahead(blocks):
    for found, query in zip(best, asked):
      found.add(score(query, documents), start)
  return (np.concatenate([b.scores for b in best]),
          np.concatenate([b.rows for b in best]).astype(np.int32))


class _Best:
  """The k best so far of a tile of queries, equals in the corpus' order."""

  def __init__(self, queries: int, k: int):
    self.k = k
    self.scores = np.full((queries, k), -np.inf, np.float32)
    self.rows = np.full((queries, k), np.iinfo(np.int64).max)

  def add(self, scores: np.ndarray, first: int):
    """Scores [q,C] of the corpus rows from `first` on."""
    least = self.scores[:, -1:]
    better = scores > least
    width = scores.shape[1]
    if width > self.k and np.count_nonzero(better) > 8 * self.scores.size:
      # At first all are better; no more than the best k of the block can stay.
      better &= scores >= np.partition(scores, width - self.k, 1)[:, -self.k, None]
    at = np.flatnonzero(better)
    if len(at):
      query, column = np.divmod(at, width)
      self._merge(query, column + first, scores.ravel()[at])

  def _merge(self, query: np.ndarray, row: np.ndarray, score: np.ndarray):
    """Takes in scores of these queries, which ascend."""
    changed, place = np.unique(query, return_inverse=True)
    own = np.repeat(np.arange(len(changed)), self.k)
    query = np.concatenate([own, place])
    row = np.concatenate([self.rows[changed].ravel(), row])
    score = np.concatenate([self.scores[changed].ravel(), score])
    order = np.lexsort((row, -score, query))
    starts = np.searchsorted(query[order], np.arange(len(changed)))
    kept = order[starts[:, None] + np.arange(self.k)]
    self.scores[changed], self.rows[changed] = score[kept], row[kept]


def _ahead(blocks: Iterator[tuple[int, Callable]]) -> Iterator[tuple[int, Any]]:
  """What the functions return, each called while the one before is used."""
  with futures.ThreadPoolExecutor(1) as thread:
    waiting = None
    for start, read in blocks:
      coming = start, thread.submit(read)
      if waiting:
        yield waiting[0], waiting[1].result()
      waiting = coming
    if waiting:
      yield waiting[0], waiting[1].result()
