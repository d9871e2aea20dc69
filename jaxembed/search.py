"""Exact search: the best documents for every query.

The [Q,C] score matrix is never stored. The corpus passes over the devices in
blocks and only the best k of each query are kept, so memory is that of one block
of scores. Equal scores are ordered by position in the corpus, whatever the
blocks and however many devices share the work.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from jaxembed import types
from jaxembed.similarity import checked, unit

_BLOCK = 8192  # corpus rows on one device at a time
# Of the summed magnitudes of a vector: the square of twice it stays within float32.
_LONGEST = 9e18
_QUERIES = 1024  # query rows at a time: with 8192, a block of scores is 32 MiB


def top_k(queries: types.Array, corpus: types.Array, k: int, *,
          mesh: jax.sharding.Mesh | None = None, block: int = _BLOCK,
          similarity: str = 'dot') -> tuple[np.ndarray, np.ndarray]:
  """The k best corpus rows of every query.

  queries [Q,E], corpus [C,E] -> scores [Q,k] float32, falling, and rows [Q,k]
  int32. The corpus may be a memory-mapped file: `block` rows for every device of
  `mesh` are read at a time. Scores are computed in full float32.

  Args:
    similarity: dot (the default), cosine, euclidean or manhattan
      (jaxembed/similarity.py); the scores of distances are negative.

  Raises:
    ValueError: k is larger than the corpus, widths differ or are 0, vectors are not
      real numbers, or one is not finite or so long that scores would overflow.
  """
  queries = np.asarray(queries)
  corpus = corpus if hasattr(corpus, 'shape') else np.asarray(corpus)
  similarity = checked(similarity)
  _check(queries, corpus, k, block)
  if not len(queries):
    return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
  devices = mesh.size if mesh is not None else 1
  rows = min(block, -(-len(corpus) // devices)) * devices
  width = min(_QUERIES, len(queries))
  step, place = _compiled(mesh, k, similarity)
  tiles = [jnp.asarray(_tile(queries, start, width, 'query', similarity))
           for start in range(0, len(queries), width)]
  best = [_nothing(width, k) for _ in tiles]
  for start in range(0, len(corpus), rows):
    documents = place(_tile(corpus, start, rows, 'corpus', similarity))
    count = np.int32(min(rows, len(corpus) - start))
    best = [step(found, tile, documents, np.int32(start), count)
            for found, tile in zip(best, tiles)]
  scores, found = (np.concatenate(part)[:len(queries)]
                   for part in zip(*jax.device_get(best)))
  return scores, found


@functools.lru_cache(maxsize=32)
def _compiled(mesh, k, similarity):
  """(the jitted step, how a block of documents is placed) for a mesh or None."""
  step = functools.partial(_step, k=k, similarity=similarity)
  if mesh is None:
    return jax.jit(step, donate_argnums=0), jnp.asarray
  names = mesh.axis_names
  step = jax.shard_map(
      functools.partial(step, names=names), mesh=mesh,
      in_specs=(P(), P(), P(names), P(), P()), out_specs=P(), check_vma=False)
  sharding = NamedSharding(mesh, P(names))
  return (jax.jit(step, donate_argnums=0),
          lambda documents: jax.device_put(documents, sharding))


def _step(best, queries, documents, start, count, *, k, similarity, names=()):
  """Best k of `best` and of a block.  queries [Q,E], documents [C,E].

  Lower rows stand first wherever lists are joined, and `lax.top_k` keeps the
  order of equals: hence ties fall to the lower row. Under a mesh `documents` is
  this device's slice of the block.
  """
  scores = _scores(similarity, queries, documents)
  offset = len(documents) * (lax.axis_index(names) if names else 0)
  rows = offset + jnp.arange(len(documents), dtype=jnp.int32)
  scores = jnp.where(rows < count, scores, -jnp.inf)
  near, place = lax.top_k(scores, min(k, len(documents)))
  rows = rows[place] + start
  if names:  # all-gather the few survivors of every slice
    near, rows = (lax.all_gather(x, names, axis=1, tiled=True)
                  for x in (near, rows))
  scores = jnp.concatenate([best[0], near], 1)
  rows = jnp.concatenate([best[1], rows], 1)
  scores, place = lax.top_k(scores, k)
  return scores, jnp.take_along_axis(rows, place, 1)


def _scores(similarity: str, queries, documents):
  """queries [Q,E], documents [C,E] -> [Q,C]; for cosine both are of length 1."""
  if similarity in ('dot', 'cosine'):
    return jnp.einsum('QE,CE->QC', queries, documents,
                      precision=lax.Precision.HIGHEST)
  order = 1 if similarity == 'manhattan' else 2
  # Differences, not the cancelling |q|^2 - 2qc + |c|^2; one query at a time, as all
  # differences of a block would be [Q,C,E].
  return lax.map(
      lambda query: -jnp.linalg.norm(documents - query, ord=order, axis=-1), queries)


def _nothing(width: int, k: int):
  return jnp.full((width, k), -jnp.inf), jnp.zeros((width, k), jnp.int32)


def _tile(rows, start: int, size: int, what: str, similarity: str) -> np.ndarray:
  """Rows [start, start + size) as float32, padded with zeros to `size`."""
  given = np.asarray(rows[start:start + size])
  with np.errstate(over='ignore'):  # what overflows is not finite and refused
    part = given.astype(np.float32)
  if not np.isfinite(part).all():
    bad = int(np.flatnonzero(~np.isfinite(part).all(-1))[0])
    fault = ('is beyond float32; scale the vectors down'
             if np.isfinite(np.asarray(given[bad], np.float64)).all()
             else 'is not finite; encode that text again')
    raise ValueError(f'{what} vector {start + bad} {fault}')
  # |<q,c>| <= |q||c|, and a distance is at most the sum of the lengths: below this
  # bound no score, and no sum on the way to it, leaves float32.
  length = np.abs(part).sum(-1, dtype=np.float64)
  if similarity != 'cosine' and (long := np.flatnonzero(length > _LONGEST)).size:
    raise ValueError(f'{what} vector {start + long[0]} has entries of up to '
                     f'{np.abs(part[long[0]]).max():.1e}, whose scores could overflow '
                     "float32; scale the vectors down, or search by 'cosine'")
  if similarity == 'cosine':
    part = unit(part.astype(np.float64)).astype(np.float32)
  return np.pad(part, ((0, size - len(part)), (0, 0)))


def _check(queries, corpus, k, block):
  if queries.ndim != 2 or len(corpus.shape) != 2:
    raise ValueError(f'search wants matrices [Q,E] and [C,E], got {queries.shape} '
                     f'and {corpus.shape}')
  for what, kind in (('queries', queries.dtype), ('the corpus', corpus.dtype)):
    if np.issubdtype(kind, np.complexfloating) or kind.kind in 'OSUmM':
      raise ValueError(f'{what} have dtype {kind}; scores are those of real numbers')
  if queries.shape[1] != corpus.shape[1]:
    raise ValueError(
        f'queries have {queries.shape[1]} dimensions and the corpus has '
        f'{corpus.shape[1]}; encode both with one model and truncate_dim')
  if not queries.shape[1]:
    raise ValueError('the vectors have no dimensions, so nothing is nearer')
  for name, value in (('k', k), ('block', block)):
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
      raise ValueError(f'{name} is {value!r}; it is a whole number')
  if not 1 <= k <= len(corpus):
    raise ValueError(f'k is {k}, but a corpus of {len(corpus)} rows allows 1 to '
                     f'{len(corpus)}')
  if block < 1:
    raise ValueError(f'block is {block}; it counts corpus rows, from 1 on')
  if len(corpus) >= 2**31:
    raise ValueError(f'the corpus has {len(corpus)} rows, and rows are counted in '
                     'int32; search parts of fewer than 2^31 rows')
