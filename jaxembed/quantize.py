"""Embeddings in fewer bits: int8, uint8, and one bit per dimension.

The numbers are those of sentence_transformers.util.quantize_embeddings.
"""

from collections.abc import Sequence
import warnings

import numpy as np

PRECISIONS = ('float32', 'int8', 'uint8', 'binary', 'ubinary')


def quantize(vectors: np.ndarray, precision: str,
             ranges: np.ndarray | None = None) -> np.ndarray:
  """[n,d] float -> [n,d] int8 or uint8, or [n, ceil(d/8)] bits packed into bytes.

  int8, uint8: 256 steps from the least to the largest value of each dimension.
  binary, ubinary: the sign of each dimension, as bytes from -128 or from 0 on.

  Args:
    ranges: [2,d] least and largest values; None: those of `vectors`, so that only
      vectors quantized together can be compared.

  Raises:
    ValueError: an unknown precision, or ranges of a single vector.
  """
  check(precision)
  if precision == 'float32':
    return vectors
  if precision.endswith('binary'):
    bits = np.packbits(vectors > 0, axis=-1)
    return bits if precision == 'ubinary' else (bits - 128).astype(np.int8)
  if ranges is None:
    ranges = value_ranges(vectors, precision)
  low, high = ranges.astype(np.float32)
  steps = (high - low) / 255
  steps = np.where(steps == 0, 1, steps)
  levels = np.clip(np.floor((vectors - low) / steps), 0, 255)
  if precision == 'uint8':
    return levels.astype(np.uint8)
  return (levels - 128).astype(np.int8)


def by_row(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """int8 codes in which each row has a scale of its own: vector = code * scale.

  [n,d] float -> ([n,d] int8 from -127 to 127, [n] float32). Nothing has to be known
  of other rows, and 0 stays 0.
  """
  scale = (np.abs(vectors).max(-1, initial=0) / 127).astype(np.float32)
  steps = np.where(scale > 0, scale, 1)[:, None]
  codes = np.clip(np.rint(np.nan_to_num(vectors / steps)), -127, 127)
  return codes.astype(np.int8), scale


def quantize_all(matrices: Sequence[np.ndarray], precision: str) -> list[np.ndarray]:
  """Several matrices [n,d], of tokens for example, by one range per dimension."""
  check(precision)
  if not matrices or precision == 'float32':
    return list(matrices)
  ranges = None
  if precision.endswith('int8'):
    ranges = value_ranges(np.concatenate(list(matrices)), precision)
  return [quantize(matrix, precision, ranges) for matrix in matrices]


def value_ranges(vectors: np.ndarray, precision: str = 'int8') -> np.ndarray:
  """Least and largest value of every dimension.  [n,d] -> [2,d]."""
  if len(vectors) < 2:
    raise ValueError(f'precision {precision!r} scales by the least and largest value '
                     'of each dimension, which one vector does not have; encode many '
                     'texts together, or use quantize.quantize with ranges')
  if len(vectors) < 100:
    warnings.warn(f'the {precision} ranges are those of {len(vectors)} vectors; '
                  'vectors of other calls have other ranges and cannot be compared '
                  'with them', stacklevel=4)
  return np.stack([vectors.min(0), vectors.max(0)])


def check(precision: str) -> None:
  """Raises ValueError unless it is one of PRECISIONS."""
  if precision not in PRECISIONS:
    raise ValueError(f'precision {precision!r} is unknown; choose one of '
                     f'{", ".join(PRECISIONS)}')
