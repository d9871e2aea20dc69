"""Tiles of vectors for a search: cut out, checked, padded."""

import numpy as np

from jaxembed.similarity import unit
from jaxembed.store import VectorStore

MEMORY = 1 << 30  # bytes for blocks, unless a search is told
QUERIES = 1024  # query rows at a time
_MOST = 16384  # corpus rows at a time: more is not faster
# Of the summed magnitudes of a vector: the square of twice it stays within float32.
_LONGEST = 9e18
_SURELY_SHORT = 1e30  # of the squared length: its magnitudes' sum is below _LONGEST


def block(memory: int, width: int) -> int:
  """Corpus rows at a time: two blocks of vectors and one of scores within `memory`."""
  row = 4 * (3 * width + 2 * QUERIES)
  return max(min(memory // row, _MOST), 1)


def floats(rows, start: int, size: int, what: str, similarity: str) -> np.ndarray:
  """Rows [start, start + size) as float32, fewer at the end.

  Of length 1 where `similarity` is cosine.

  Raises:
    ValueError: one is not finite, or so long that scores could overflow.
  """
  given = np.asarray(rows[start:start + size])
  with np.errstate(over='ignore'):  # what overflows is not finite and refused
    part = given.astype(np.float32)
    squares = np.einsum('CE,CE->C', part, part)
  if not (squares < _SURELY_SHORT).all():
    _check_long(given, part, start, what, similarity)
  if similarity == 'cosine':
    part = unit(part.astype(np.float64)).astype(np.float32)
  return part


def padded(part: np.ndarray, size: int) -> np.ndarray:
  """`part` with zeros behind it, `size` rows in all."""
  return np.pad(part, ((0, size - len(part)),) + ((0, 0),) * (part.ndim - 1))


def _check_long(given, part: np.ndarray, start: int, what: str, similarity: str):
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


def check(queries: np.ndarray, corpus, k: int, block: int | None, memory: int):
  """Refuses what cannot be searched, before anything is read."""
  if queries.ndim != 2 or len(corpus.shape) != 2:
    raise ValueError(f'search wants matrices [Q,E] and [C,E], got {queries.shape} '
                     f'and {corpus.shape}')
  for what, vectors in (('queries', queries), ('the corpus', corpus)):
    kind = np.dtype(np.float32) if isinstance(vectors, VectorStore) else vectors.dtype
    if np.issubdtype(kind, np.complexfloating) or kind.kind in 'OSUmM':
      raise ValueError(f'{what} have dtype {kind}; scores are those of real numbers')
  if queries.shape[1] != corpus.shape[1]:
    raise ValueError(
        f'queries have {queries.shape[1]} dimensions and the corpus has '
        f'{corpus.shape[1]}; encode both with one model and truncate_dim')
  if not queries.shape[1]:
    raise ValueError('the vectors have no dimensions, so nothing is nearer')
  whole = {'k': k, 'memory': memory} | ({} if block is None else {'block': block})
  for name, value in whole.items():
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
      raise ValueError(f'{name} is {value!r}; it is a whole number')
  if not 1 <= k <= len(corpus):
    raise ValueError(f'k is {k}, but a corpus of {len(corpus)} rows allows 1 to '
                     f'{len(corpus)}')
  if block is not None and block < 1:
    raise ValueError(f'block is {block}; it counts corpus rows, from 1 on')
  if len(corpus) >= 2**31:
    raise ValueError(f'the corpus has {len(corpus)} rows, and rows are counted in '
                     'int32; search parts of fewer than 2^31 rows')
