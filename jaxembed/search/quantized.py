"""Search in integers over a store of int8 codes or of bits, then rescoring.

Queries are coded as the documents are. The best by integer scores, `oversample` times
as many as asked for, are scored again with the float32 queries: against the stored
codes, or against vectors of a store that has more of them.
"""

import jax
import numpy as np

from jaxembed import types
from jaxembed.search import devices, host, scores, tiles
from jaxembed.store import VectorStore, codes

_CHUNK = 1 << 26  # bytes of vectors that are scored again at a time


def quantized_top_k(queries: types.Array, corpus: VectorStore, k: int, *,
                    oversample: int = 4, rescore: VectorStore | None = None,
                    mesh: jax.sharding.Mesh | None = None, block: int | None = None,
                    memory: int = tiles.MEMORY) -> tuple[np.ndarray, np.ndarray]:
  """The k best rows of an int8 or binary store by dot product, found in integers.

  queries [Q,E] float -> scores [Q,k] float32, falling, and rows [Q,k] int32. Scores
  are those of the float32 queries with what is stored (bits are -1 and 1), or with
  the rows of `rescore`. int8 products are summed exactly in int32; bits are compared
  by the number that differ. Equal scores are ordered by row.

  Args:
    oversample: candidates found in integers, in units of k. More find more of what
      an exact search finds.
    rescore: a store of the same rows with more exact vectors.
    mesh, block, memory: as in top_k.

  Raises:
    ValueError: the store is one of floats, `rescore` has other rows, or what top_k
      refuses.
  """
  queries = np.asarray(queries)
  stored = getattr(corpus, 'dtype', None) if isinstance(corpus, VectorStore) else None
  if stored not in ('int8', 'binary'):
    raise ValueError('integers are searched in a vector store of int8 or binary, not '
                     f'in {stored or type(corpus).__name__}; use top_k')
  tiles.check(queries, corpus, k, block, memory)
  if rescore is not None and rescore.shape != corpus.shape:
    raise ValueError(f'rescore has {rescore.shape} vectors and the corpus '
                     f'{corpus.shape}; they are of the same rows')
  if isinstance(oversample, bool) or not isinstance(oversample, int) or oversample < 1:
    raise ValueError(f'oversample is {oversample!r}; it is a whole number from 1 on')
  if not len(queries):
    return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
  block = block or tiles.block(memory, corpus.width)
  depth = min(k * oversample, len(corpus))
  exact = tiles.floats(queries, 0, len(queries), 'query', 'dot')
  coded = codes.encode(exact, corpus.dtype)

  def tile(rows, start: int, size: int, _: str):
    part = slice(start, start + size)
    return _arrays(rows[part] if rows is coded else rows.stored(part), corpus.dtype)

  if mesh is None and jax.default_backend() == 'cpu':
    score = scores.compiled(corpus.dtype)
    _, rows = host.top_k(coded, corpus, depth, block, tile,
                         lambda a, b: np.asarray(score(a, b)))
  else:
    _, rows = devices.top_k(coded, corpus, depth, block, tile, corpus.dtype, mesh)
  return _rescored(exact, rows, rescore or corpus, k)


def _arrays(stored: np.ndarray, dtype: str):
  """A part of a store as scores.of takes it."""
  if dtype == 'int8':
    return np.ascontiguousarray(stored['vector']), np.ascontiguousarray(stored['scale'])
  stored = np.pad(stored, ((0, 0), (0, -stored.shape[1] % 4)))
  return np.ascontiguousarray(stored).view(np.uint32)


def _rescored(queries: np.ndarray, rows: np.ndarray, vectors: VectorStore, k: int
              ) -> tuple[np.ndarray, np.ndarray]:
  """The k best of the candidates [Q,n] by their dot products in float32."""
  step = max(_CHUNK // (4 * vectors.width * rows.shape[1]), 1)
  found = np.empty(rows.shape, np.float32)
  for start in range(0, len(rows), step):
    part = rows[start:start + step]
    near = vectors.rows(part.ravel()).reshape(*part.shape, vectors.width)
    found[start:start + step] = np.matmul(
        near, queries[start:start + step, :, None])[..., 0]
  order = np.lexsort((rows, -found), axis=1)[:, :k]
  return np.take_along_axis(found, order, 1), np.take_along_axis(rows, order, 1)
