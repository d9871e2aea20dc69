"""Up-projection, GEGLU and sum per segment in one Pallas TPU kernel.

Grid: (F blocks, groups of chunks). A group is as many chunks as make 512 tokens.
The kernels' columns [D,f] of an F block stay in VMEM while all tokens stream past
them; per step the matrix unit makes the two pre-activations [512,f] in float32, the
vector unit the GEGLU and its sums per segment. Those of a row that was cut into
chunks stay in VMEM until its last chunk, and are written once.

Where a gradient is wanted the step writes the pre-activations as well, as blockwise
keeps them: its backward pass is then this kernel's. What blockwise does and this does
not is to read them again for the sums.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.functional import geglu, layer_norm
from jaxembed.kernels import choices, dispatch
from jaxembed.kernels.latent_pool import blockwise, recompute
from jaxembed.types import Params

_TOKENS = 512  # of a grid step: the columns are read from VMEM once for these
_STRIP = 256  # tokens of them at a time
_COLUMNS = (1024, 512, 256, 128)  # f, the widest that fits
_SUBLANES = 16  # rows of a bfloat16 tile; a float32 tile has 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def geglu_sums(interpret: Any, token_block: int, num_segments: int, pieces: int,
               norm: Params, mlp: Params, x: jax.Array, segments: jax.Array
               ) -> jax.Array:
  """As blockwise.geglu_sums, by the kernel; `interpret` runs it on any device."""
  del token_block  # the kernel has its own
  return _run(mlp, layer_norm(x, **norm), segments, num_segments, pieces, False,
              interpret)[0]


def _fwd(interpret, token_block, num_segments, pieces, norm, mlp, x, segments):
  del token_block
  sums, up, gate = _run(mlp, layer_norm(x, **norm), segments, num_segments, pieces,
                        True, interpret)
  return sums, (norm, mlp, x, segments, up, gate)


def _bwd(interpret, token_block, num_segments, pieces, residuals, d_sums):
  del interpret
  return blockwise.sums_vjp(token_block, num_segments, pieces, residuals, d_sums)


geglu_sums.defvjp(_fwd, _bwd)


def check(width: int, inner: int, dtype: Any) -> None:
  """Raises dispatch.Unsupported unless the kernel tiles D = width, F = inner."""
  if width % 128 or inner % 128:
    raise dispatch.Unsupported(
        f'tpu latent_pool needs D % 128 == 0 and F % 128 == 0, got D={width}, '
        f"F={inner}; use impl='blockwise'")
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
    raise dispatch.Unsupported(
        f'tpu latent_pool computes in bfloat16 or float32, got {jnp.dtype(dtype)}; '
        "use impl='blockwise'")
  _columns(width, inner, dtype)


def _run(mlp, y, segments, num_segments, pieces, keep, interpret):
  """-> sums [C/pieces,S,F] float32 and, with `keep`, up and gate [C,T,F] of y's dtype.

  Every `pieces` chunks are of one row.
  """
  chunks, length, width = y.shape
  # Chunks of several texts stay alone: one with a NaN would reach its neighbours.
  y, segments, rows = recompute.group(
      y, segments, num_segments, _TOKENS if num_segments == 1 else 1, _SUBLANES)
  groups, tokens, _ = y.shape
  assert pieces == 1 or groups == chunks  # a row that is cut has chunks above 256
  inner, size = mlp['up']['kernel'].shape[1], tokens * num_segments // rows
  columns, out_rows = _columns(width, inner, y.dtype), -(-rows // 8) * 8

  def token_at(f, g):
    return g, 0, f

  weight = pl.BlockSpec((width, columns), lambda f, g: (0, f))
  bias = pl.BlockSpec((1, columns), lambda f, g: (0, f))
  kept = jax.ShapeDtypeStruct((groups, tokens, inner), y.dtype)
  out_shape = jax.ShapeDtypeStruct((groups // pieces, out_rows, inner), jnp.float32)
  kernels = [mlp[name]['kernel'].astype(y.dtype) for name in ('up', 'gate')]
  biases = [mlp[name]['bias'].astype(jnp.float32)[None] for name in ('up', 'gate')]
  moved = (inner // columns) * y.size + 2 * width * inner + 2 * keep * kept.size
  out, *kept = pl.pallas_call(
      functools.partial(_body, num_segments, size, pieces),
      grid=(inner // columns, groups),
      in_specs=[pl.BlockSpec((1, 1, tokens), lambda f, g: (g, 0, 0)),
                pl.BlockSpec((1, tokens, width), lambda f, g: (g, 0, 0)),
                weight, weight, bias, bias],
      out_specs=[pl.BlockSpec((1, out_rows, columns), lambda f, g: (g // pieces, 0, f)),
                 *[pl.BlockSpec((1, tokens, columns), token_at)] * 2 * keep],
      out_shape=[out_shape, *[kept] * 2 * keep],
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'arbitrary'),
          vmem_limit_bytes=choices.vmem() * 15 // 16),
      cost_estimate=pl.CostEstimate(
          flops=4 * groups * tokens * width * inner,
          transcendentals=groups * tokens * inner,
          bytes_accessed=moved * y.dtype.itemsize + 4 * out_shape.size),
      interpret=interpret, name='geglu_sums')(
          segments[:, None], y, *kernels, *biases)
  sums = out[:, :rows].reshape(-1, num_segments, inner)[:chunks // pieces]
  return sums, *(x.reshape(-1, size, inner)[:chunks, :length] for x in kept)


def _body(num_segments, size, pieces, seg_ref, y_ref, up_ref, gate_ref, up_bias_ref,
          gate_bias_ref, out_ref, *kept):
  """One step: chunks of `size` tokens side by side, a strip of tokens at a time."""
  tokens, dtype = y_ref.shape[1], y_ref.dtype

  def project(at, w_ref, b_ref):
    z = jnp.dot(y_ref[0, at], w_ref[...], precision=precision.of_dtype(dtype),
                preferred_element_type=jnp.float32) + b_ref[...]
    return z.astype(dtype)

  def both(at):
    return project(at, up_ref, up_bias_ref), project(at, gate_ref, gate_bias_ref)

  strips = [slice(i, min(i + _STRIP, tokens)) for i in range(0, tokens, _STRIP)]
  sums, following = {}, both(strips[0])  # first row of the sums -> their values
  for i, at in enumerate(strips):
    pair = following
    if i + 1 < len(strips):  # products of the next strip while this one is summed
      following = both(strips[i + 1])
    for ref, z in zip(kept, pair):
      ref[0, at] = z
    inner, segments = geglu(*(z.astype(jnp.float32) for z in pair)), seg_ref[0, :, at]
    if num_segments == 1:
      found = _sums_of_chunks(segments, inner, at.start, size)
    else:
      found = {0: _sums_of_segments(segments, inner, out_ref.shape[1], dtype)}
    for row, value in found.items():
      sums[row] = sums[row] + value if row in sums else value
  for row, value in sums.items():
    place = out_ref.at[0, pl.ds(row, len(value))]
    if pieces == 1:
      place[...] = value
    else:
      first = pl.program_id(1) % pieces == 0
      place[...] = value + jnp.where(first, 0, place[...])


def _sums_of_chunks(segments, inner, start, size):
  """segments [1,t], inner [t,f] -> chunk: [1,f], the sum of its tokens that count.

  start: of the strip in its group; size: tokens of a chunk.
  """
  counts = (segments >= 0).astype(jnp.float32).T
  inner, stop = jnp.where(counts > 0, inner, 0), start + len(inner)
  return {chunk: jnp.sum(
      inner[max(chunk * size - start, 0):(chunk + 1) * size - start], 0, keepdims=True)
      for chunk in range(start // size, -(-stop // size))}


def _sums_of_segments(segments, inner, rows, dtype):
  """segments [1,t], inner [t,f] -> [rows,f], by products with zeros and ones."""
  row = jax.lax.broadcasted_iota(jnp.int32, (rows, len(inner)), 0)
  hot = (row == segments).astype(jnp.float32)
  if dtype == jnp.float32:
    return jnp.dot(hot, inner, precision=jax.lax.Precision.HIGHEST,
                   preferred_element_type=jnp.float32)
  # Two pieces hold 16 bits of values whose factors were rounded to 8.
  high = inner.astype(dtype)
  low = (inner - high.astype(jnp.float32)).astype(dtype)
  hot = hot.astype(dtype)
  return sum(jnp.dot(hot, x, preferred_element_type=jnp.float32) for x in (high, low))


def _columns(width, inner, dtype) -> int:
  size, room = jnp.dtype(dtype).itemsize, choices.vmem() * 3 // 4
  for columns in _COLUMNS:
    # Columns of both kernels, tokens and what is kept, double-buffered; float32 tiles
    # of a strip; for float32 the three bfloat16 pieces of each operand as well.
    operands = width * (2 * columns + _TOKENS)
    need = 2 * size * (operands + 2 * _TOKENS * columns) + 24 * _STRIP * columns
    need += 6 * operands if size == 4 else 0
    if inner % columns == 0 and need <= room:
      return columns
  raise dispatch.Unsupported(
      f'tpu latent_pool keeps 128 columns of width {width} in {room >> 20} MiB of '
      "VMEM, and they do not fit; use impl='blockwise'")
