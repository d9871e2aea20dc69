"""Stored types of vectors: floats, int8 with a scale per row, one bit per dimension."""

import ml_dtypes
import numpy as np

from jaxembed import quantize

DTYPES = ('float32', 'float16', 'bfloat16', 'int8', 'binary')


def check(dtype: str) -> None:
  """Raises ValueError unless it is one of DTYPES."""
  if dtype not in DTYPES:
    raise ValueError(f'dtype {dtype!r} is not stored; choose one of '
                     f'{", ".join(DTYPES)}')


def layout(dtype: str, width: int) -> tuple[np.dtype, tuple[int, ...]]:
  """(numpy type, shape) of one stored row.

  bfloat16 lies as the 16 bits that numpy has no name for; a row of int8 brings its
  scale; bits are packed as numpy.packbits does.
  """
  check(dtype)
  if dtype == 'int8':
    return np.dtype([('vector', 'i1', (width,)), ('scale', '<f4')]), ()
  if dtype == 'binary':
    return np.dtype('u1'), (-(-width // 8),)
  return np.dtype({'bfloat16': '<u2', 'float16': '<f2', 'float32': '<f4'}[dtype]), (
      width,)


def encode(vectors: np.ndarray, dtype: str) -> np.ndarray:
  """Vectors as they are stored.  [n,d] float32 -> [n, ...] of `layout`."""
  check(dtype)
  if dtype == 'int8':
    codes, scale = quantize.by_row(vectors)
    stored = np.empty(len(vectors), layout(dtype, vectors.shape[1])[0])
    stored['vector'], stored['scale'] = codes, scale
    return stored
  if dtype == 'binary':
    return quantize.quantize(vectors, 'ubinary')
  if dtype == 'bfloat16':
    return vectors.astype(ml_dtypes.bfloat16).view('<u2')
  return vectors.astype(layout(dtype, 1)[0])


def decode(stored: np.ndarray, dtype: str, width: int) -> np.ndarray:
  """Vectors as float32; bits are -1 and 1.  [n, ...] of `layout` -> [n,d]."""
  if dtype == 'int8':
    return stored['vector'] * stored['scale'][:, None]
  if dtype == 'binary':
    bits = np.unpackbits(stored, axis=-1, count=width)
    return bits.astype(np.float32) * 2 - 1
  if dtype == 'bfloat16':
    stored = stored.view(ml_dtypes.bfloat16)
  return stored.astype(np.float32)


def finite(stored: np.ndarray, dtype: str) -> np.ndarray:
  """Which rows are numbers throughout.  [n, ...] of `layout` -> [n] bool."""
  if dtype == 'binary':
    return np.ones(len(stored), bool)
  if dtype == 'int8':
    return np.asarray(np.isfinite(stored['scale']))
  if dtype == 'bfloat16':
    stored = stored.view(ml_dtypes.bfloat16)
  return np.asarray(np.isfinite(stored).all(-1))
