"""Exact search: the best documents for every query.

The [Q,C] score matrix is never stored. The corpus passes in blocks, over the devices
of a mesh or through the cores of this host, and only the best k of each query are
kept, so memory is that of a block of scores. Equal scores are ordered by position in
the corpus, whatever the blocks and however many devices share the work.

A corpus may be larger than memory: a memory-mapped file, or a vector store
(jaxembed/store). One of int8 or of bits can be searched in integers
(`quantized_top_k`), which reads a quarter or a thirty-second of the bytes.
"""

import jax
import numpy as np

from jaxembed import types
from jaxembed.search import devices, host, tiles
from jaxembed.search.quantized import quantized_top_k
from jaxembed.similarity import checked
from jaxembed.store import VectorStore

__all__ = ['quantized_top_k', 'top_k']

MEMORY = tiles.MEMORY


def top_k(queries: types.Array, corpus: types.Array | VectorStore, k: int, *,
          mesh: jax.sharding.Mesh | None = None, block: int | None = None,
          similarity: str = 'dot', memory: int = MEMORY
          ) -> tuple[np.ndarray, np.ndarray]:
  """The k best corpus rows of every query.

  queries [Q,E], corpus [C,E] -> scores [Q,k] float32, falling, and rows [Q,k]
  int32. Scores are computed in full float32, of a store from what its rows are as
  floats.

  Args:
    mesh: shares the corpus; None: the default device, or where that is a CPU the
      host's own matrix product.
    block: corpus rows on one device at a time; None: as `memory` allows.
    similarity: dot (the default), cosine, euclidean or manhattan
      (jaxembed/similarity.py); the scores of distances are negative.
    memory: bytes for blocks of corpus and of scores, beside queries and results.

  Raises:
    ValueError: k is larger than the corpus, widths differ or are 0, vectors are not
      real numbers, or one is not finite or so long that scores would overflow.
  """
  queries = np.asarray(queries)
  corpus = corpus if hasattr(corpus, 'shape') else np.asarray(corpus)
  similarity = checked(similarity)
  tiles.check(queries, corpus, k, block, memory)
  if not len(queries):
    return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
  block = block or tiles.block(memory, queries.shape[1])

  def tile(rows, start: int, size: int, what: str) -> np.ndarray:
    return tiles.floats(rows, start, size, what, similarity)

  if host.suits(mesh, similarity):
    return host.top_k(queries, corpus, k, block, tile, host.product)
  return devices.top_k(queries, corpus, k, block, tile, similarity, mesh)
