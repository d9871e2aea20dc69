"""Up-projection, GEGLU and sum per segment in one Pallas TPU kernel.

Grid: (F blocks, groups of chunks). A group is as many chunks as make 512 tokens.
The kernels' columns [D,f] of an F block stay in VMEM while all tokens stream past
them; per step the matrix unit makes the two pre-activations [512,f] in float32,
the vector unit the GEGLU, and a product with the one-hot segments [S,512] sums
tokens. Memory at D = 4096, f = 512, bfloat16: 16 MiB of columns and 8 MiB of
tokens (both double-buffered), 6 MiB of float32 values.

The gradient program makes the pre-activations again in the same way and writes
their gradients, a block of tokens at a time.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.functional import geglu, gelu_and_slope
from jaxembed.kernels import dispatch
from jaxembed.kernels.latent_pool import recompute

_TOKENS = 512  # of a grid step: the columns are read from VMEM once for these
_COLUMNS = (512, 256, 128)  # f, the widest that fits
_VMEM = 48 * 2**20  # within what v5e, v5p and v6e have
_SUBLANES = 16  # rows of a bfloat16 tile; a float32 tile has 8


@functools.cache
def kernel(interpret: Any = False) -> recompute.Kernel:
  """The two programs; `interpret` runs them on any device."""
  return recompute.Kernel(
      sums=functools.partial(_sums, interpret=interpret),
      grad=functools.partial(_grad, interpret=interpret))


def check(width: int, inner: int, dtype: Any) -> None:
  """Raises dispatch.Unsupported unless the kernels tile D = width, F = inner."""
  if width % 128 or inner % 128:
    raise dispatch.Unsupported(
        f'tpu latent_pool needs D % 128 == 0 and F % 128 == 0, got D={width}, '
        f"F={inner}; use impl='blockwise'")
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
    raise dispatch.Unsupported(
        f'tpu latent_pool computes in bfloat16 or float32, got {jnp.dtype(dtype)}; '
        "use impl='blockwise'")
  _columns(width, inner, dtype)


def _sums(mlp, y, segments, num_segments, interpret):
  """-> [C,S,F] float32."""
  chunks = len(y)
  y, segments, rows = recompute.group(
      y, segments, num_segments, _TOKENS, _SUBLANES)
  segments = segments[:, None]
  inner = mlp['up']['kernel'].shape[1]
  specs, out_rows, columns, grid = _tiling(y, inner, rows)
  out = pl.pallas_call(
      _sums_body,
      grid=grid,
      in_specs=specs,
      out_specs=pl.BlockSpec((1, out_rows, columns), lambda f, g: (g, 0, f)),
      out_shape=jax.ShapeDtypeStruct((len(y), out_rows, inner), jnp.float32),
      compiler_params=_params(), interpret=interpret,
      name='geglu_sums')(*_operands(mlp, y, segments))
  return out[:, :rows].reshape(-1, num_segments, inner)[:chunks]


def _grad(mlp, y, segments, d_sums, interpret):
  """-> d_up, d_gate, both [C,T,F] in y's dtype."""
  chunks, length, _ = y.shape
  num_segments, inner = d_sums.shape[1:]
  y, segments, rows = recompute.group(
      y, segments, num_segments, _TOKENS, _SUBLANES)
  segments = segments[:, None]
  specs, in_rows, columns, grid = _tiling(y, inner, rows)
  groups, tokens, _ = y.shape
  d_sums = recompute.pad(d_sums, 0, groups * rows // num_segments)
  d_sums = recompute.pad(d_sums.reshape(groups, rows, inner), 1, in_rows)
  spec = pl.BlockSpec((1, tokens, columns), lambda f, g: (g, 0, f))
  shape = jax.ShapeDtypeStruct((groups, tokens, inner), y.dtype)
  out = pl.pallas_call(
      _grad_body,
      grid=grid,
      in_specs=[*specs, pl.BlockSpec((1, in_rows, columns), lambda f, g: (g, 0, f))],
      out_specs=(spec, spec), out_shape=(shape, shape),
      compiler_params=_params(), interpret=interpret,
      name='geglu_grad')(*_operands(mlp, y, segments), d_sums)
  size = tokens // (rows // num_segments)
  return tuple(
      x.reshape(-1, size, inner)[:chunks, :length] for x in out)


def _sums_body(seg_ref, y_ref, up_ref, gate_ref, up_bias_ref, gate_bias_ref, out_ref):
  up, gate = _project(y_ref, up_ref, gate_ref, up_bias_ref, gate_bias_ref)
  hot = _one_hot(seg_ref, out_ref.shape[1])
  out_ref[0] = jnp.dot(hot, geglu(up, gate), precision=jax.lax.Precision.HIGHEST,
                       preferred_element_type=jnp.float32)


def _grad_body(seg_ref, y_ref, up_ref, gate_ref, up_bias_ref, gate_bias_ref,
               d_sums_ref, d_up_ref, d_gate_ref):
  up, gate = _project(y_ref, up_ref, gate_ref, up_bias_ref, gate_bias_ref)
  gelu, slope = gelu_and_slope(gate)
  hot = _one_hot(seg_ref, d_sums_ref.shape[1])
  d_inner = jax.lax.dot_general(
      hot, d_sums_ref[0], (((0,), (0,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
  d_up_ref[0] = (d_inner * gelu).astype(d_up_ref.dtype)
  d_gate_ref[0] = (d_inner * up * slope).astype(d_gate_ref.dtype)


def _project(y_ref, up_ref, gate_ref, up_bias_ref, gate_bias_ref):
  """The pre-activations of a step, rounded to the states' dtype. -> float32."""
  y = y_ref[0]

  def linear(w_ref, b_ref):
    z = jnp.dot(y, w_ref[...], precision=precision.of_dtype(y.dtype),
                preferred_element_type=jnp.float32) + b_ref[...]
    return z.astype(y.dtype).astype(jnp.float32)

  return linear(up_ref, up_bias_ref), linear(gate_ref, gate_bias_ref)


def _one_hot(seg_ref, rows):
  """seg [1,1,T] -> [rows,T] float32; -1 matches no row."""
  seg = seg_ref[0]
  row = jax.lax.broadcasted_iota(jnp.int32, (rows, seg.shape[1]), 0)
  return (row == seg).astype(jnp.float32)


def _tiling(y, inner, rows):
  """Input specs, rows of the sums padded to a tile, columns, grid."""
  groups, tokens, width = y.shape
  columns = _columns(width, inner, y.dtype)
  weight = pl.BlockSpec((width, columns), lambda f, g: (0, f))
  bias = pl.BlockSpec((1, columns), lambda f, g: (0, f))
  specs = [pl.BlockSpec((1, 1, tokens), lambda f, g: (g, 0, 0)),
           pl.BlockSpec((1, tokens, width), lambda f, g: (g, 0, 0)),
           weight, weight, bias, bias]
  return specs, -(-rows // 8) * 8, columns, (inner // columns, groups)


def _operands(mlp, y, segments):
  kernels = [mlp[name]['kernel'].astype(y.dtype) for name in ('up', 'gate')]
  biases = [mlp[name]['bias'].astype(jnp.float32)[None] for name in ('up', 'gate')]
  return segments, y, *kernels, *biases


def _columns(width, inner, dtype) -> int:
  size = jnp.dtype(dtype).itemsize
  for columns in _COLUMNS:
    # Columns of both kernels and tokens, double-buffered; six float32 tiles; for
    # float32 the three bfloat16 pieces of each operand as well.
    operands = width * (2 * columns + _TOKENS)
    need = 2 * size * operands + 24 * _TOKENS * columns
    need += 6 * operands if size == 4 else 0
    if inner % columns == 0 and need <= _VMEM:
      return columns
  raise dispatch.Unsupported(
      f'tpu latent_pool keeps 128 columns of width {width} in {_VMEM >> 20} MiB of '
      "VMEM, and they do not fit; use impl='blockwise'")


def _params():
  return pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel'),
      vmem_limit_bytes=_VMEM + _VMEM // 4)  # a quarter for what the compiler adds

