"""Operands of the Pallas TPU kernels of masked log-sum-exp, two rows to a word.

Read from an array of 16-bit values a register comes as two halves, which must be put
together between the load and the matrix unit; words of two rows are loaded whole. A
kernel of its own makes them, as XLA would move each value five times.
"""

from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

_MOST_BYTES = 256 << 20  # of an operand: its copy takes as much HBM
_BLOCK = 256, 1024  # rows and columns at a time
_TILE = 128  # of which both are multiples


def of(x: jax.Array, *, interpret: bool = False) -> jax.Array:
  """Two rows of 16 bits to a word, [rows/2,columns] uint32; any other x as it is.

  x: [rows,columns]; as it is too with an odd number of rows, or beyond 256 MiB, where
  memory is dearer than the halves. interpret: run the kernel in Pallas's interpreter.
  """
  if x.dtype.itemsize != 2 or x.shape[0] % 2 or x.nbytes > _MOST_BYTES:
    return x
  rows, columns = (min(most, pl.cdiv(size, _TILE) * _TILE)
                   for most, size in zip(_BLOCK, x.shape, strict=True))
  return pl.pallas_call(
      _kernel, name='contrastive_pairs',
      grid=(pl.cdiv(x.shape[0], rows), pl.cdiv(x.shape[1], columns)),
      in_specs=[pl.BlockSpec((rows, columns), lambda i, j: (i, j))],
      out_specs=pl.BlockSpec((rows // 2, columns), lambda i, j: (i, j)),
      out_shape=jax.ShapeDtypeStruct((x.shape[0] // 2, x.shape[1]), jnp.uint32),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel')),
      cost_estimate=pl.CostEstimate(
          flops=0, transcendentals=0, bytes_accessed=4 * x.size),
      interpret=pltpu.InterpretParams() if interpret else False)(x)


def _kernel(x_ref: Any, out_ref: Any) -> None:
  out_ref[...] = pltpu.bitcast(x_ref[...], jnp.uint32)
