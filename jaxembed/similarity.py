"""Similarity functions of dense vectors: cosine, dot product, negated distances.

The names and the meaning are sentence-transformers'; a larger number is always nearer.
"""

from typing import Any

import numpy as np

from jaxembed import types

NAMES = ('cosine', 'dot', 'euclidean', 'manhattan')


def checked(name: Any) -> str:
  """The name of a similarity function; an enumeration's member stands for its value.

  Raises:
    ValueError: it is none of NAMES.
  """
  found = getattr(name, 'value', name)
  if found not in NAMES:
    raise ValueError(f'similarity {name!r} is unknown; choose one of '
                     f'{", ".join(NAMES)}')
  return found


def unit(x: np.ndarray) -> np.ndarray:
  """Rows scaled to length 1; a zero row stays zero.  [n,d] -> [n,d]."""
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def matrix(name: str, a: types.Array, b: types.Array) -> np.ndarray:
  """Similarity of every pair.  a [n,d] or [d], b [m,d] or [d] -> [n,m].

  float32, or float64 where a side is.

  Raises:
    ValueError: widths differ, or the vectors are not numbers.
  """
  a, b = np.atleast_2d(_real(a)), np.atleast_2d(_real(b))
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(f'similarity compares vectors of one width, but {a.shape} and '
                     f'{b.shape} are given')
  if name in ('cosine', 'dot'):
    if name == 'cosine':
      a, b = unit(a), unit(b)
    return a @ b.T
  return np.stack([_rows(name, row, b) for row in a]) if len(a) else a @ b.T


def pairwise(name: str, a: types.Array, b: types.Array) -> np.ndarray:
  """Similarity row by row.  a, b [n,d] -> [n]; of two vectors [d] a number.

  Raises:
    ValueError: shapes differ, or the vectors are not numbers.
  """
  a, b = _real(a), _real(b)
  if a.shape != b.shape or not a.ndim:
    raise ValueError(f'rows are compared one to one, but {a.shape} is not {b.shape}')
  return _rows(name, a, b)


def _rows(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  if name == 'manhattan':
    return -np.abs(a - b).sum(-1)
  if name == 'euclidean':
    return -np.linalg.norm(a - b, axis=-1)
  if name == 'cosine':
    a, b = unit(a), unit(b)
  return (a * b).sum(-1)


def _real(x) -> np.ndarray:
  """Vectors as float32, or float64 where they are."""
  if hasattr(x, 'detach'):  # torch's, perhaps with a gradient, or of a type of its own
    x = x.detach().cpu()
    x = x.float() if str(x.dtype) == 'torch.bfloat16' else x
  x = np.asarray(x)
  if x.dtype.kind == 'c' or x.dtype.kind in 'OSUmM':
    raise ValueError(f'vectors are of dtype {x.dtype}; similarities are those of real '
                     'numbers')
  return x.astype(np.promote_types(x.dtype, np.float32), copy=False)
