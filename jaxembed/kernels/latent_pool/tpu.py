"""Up-projection, GEGLU and sum per segment in one Pallas TPU kernel.

Grid: (F blocks, groups of chunks). A group is as many chunks as make 512 tokens.
The kernels' columns [D,f] of an F block stay in VMEM while all tokens stream past
them; per step the vector unit makes their LayerNorm, again for each block, the matrix
unit the two pre-activations [512,f] in float32, the vector unit the GEGLU and its sums
per segment. Those of a row that was cut into
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
_PART = 128, 128  # tokens and columns of them at a time: registers hold few more
_COLUMNS = (1024, 512, 256, 128)  # f, the widest that fits
_SUBLANES = 16  # rows of a bfloat16 tile; a float32 tile has 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def geglu_sums(interpret: Any, token_block: int, num_segments: int, pieces: int,
               norm: Params, mlp: Params, x: jax.Array, segments: jax.Array
               ) -> jax.Array:
  """As blockwise.geglu_sums, by the kernel; `interpret` runs it on any device."""
  del token_block  # the kernel has its own
  return _run(norm, mlp, x, segments, num_segments, pieces, False, interpret)[0]


def _fwd(interpret, token_block, num_segments, pieces, norm, mlp, x, segments):
  del token_block
  sums, up, gate = _run(norm, mlp, x, segments, num_segments, pieces, True, interpret)
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
  block_columns(width, inner, dtype)


def _run(norm, mlp, x, segments, num_segments, pieces, keep, interpret):
  """-> sums [C/pieces,S,F] float32 and, with `keep`, up and gate [C,T,F] of x's dtype.

  Every `pieces` chunks are of one row.
  """
  chunks, length, width = x.shape
  # Chunks of several texts stay alone: one with a NaN would reach its neighbours.
  x, segments, rows = recompute.group(
      x, segments, num_segments, _TOKENS if num_segments == 1 else 1, _SUBLANES)
  groups, tokens, _ = x.shape
  assert pieces == 1 or groups == chunks  # a row that is cut has chunks above 256
  inner, size = mlp['up']['kernel'].shape[1], tokens * num_segments // rows
  columns, out_rows = block_columns(width, inner, x.dtype), -(-rows // 8) * 8
  wide = jax.ShapeDtypeStruct((groups, tokens, inner), x.dtype)
  wide_spec = pl.BlockSpec((1, tokens, columns), lambda f, g: (g, 0, f))
  of_rows = jax.ShapeDtypeStruct((groups // pieces, out_rows, inner), jnp.float32)
  moved = (inner // columns) * x.size + 2 * width * inner + 2 * keep * wide.size
  out, *kept = pl.pallas_call(
      functools.partial(_body, num_segments, size, pieces),
      grid=(inner // columns, groups), in_specs=_operand_specs(tokens, width, columns),
      out_specs=[pl.BlockSpec((1, out_rows, columns), lambda f, g: (g // pieces, 0, f)),
                 *[wide_spec] * 2 * keep],
      out_shape=[of_rows, *[wide] * 2 * keep],
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'arbitrary'),
          vmem_limit_bytes=choices.vmem() * 15 // 16),
      cost_estimate=pl.CostEstimate(
          flops=4 * groups * tokens * width * inner,
          transcendentals=groups * tokens * inner,
          bytes_accessed=moved * x.dtype.itemsize + 4 * of_rows.size),
      interpret=interpret, name='geglu_sums')(
          segments[:, None], x, *_operands(norm, mlp, x.dtype))
  sums = out[:, :rows].reshape(-1, num_segments, inner)[:chunks // pieces]
  return sums, *(z.reshape(-1, size, inner)[:chunks, :length] for z in kept)


def _operands(norm, mlp, dtype):
  """What the states meet, vectors as rows of float32."""
  vectors = norm['scale'], norm['bias'], mlp['up']['bias'], mlp['gate']['bias']
  scale, bias, *biases = (v.astype(jnp.float32)[None] for v in vectors)
  kernels = [mlp[name]['kernel'].astype(dtype) for name in ('up', 'gate')]
  return scale, bias, *kernels, *biases


def _operand_specs(tokens, width, columns):
  """Of segments, states and `_operands`."""
  vector = pl.BlockSpec((1, width), lambda f, g: (0, 0))
  weight = pl.BlockSpec((width, columns), lambda f, g: (0, f))
  bias = pl.BlockSpec((1, columns), lambda f, g: (0, f))
  return [pl.BlockSpec((1, 1, tokens), lambda f, g: (g, 0, 0)),
          pl.BlockSpec((1, tokens, width), lambda f, g: (g, 0, 0)),
          vector, vector, weight, weight, bias, bias]


def _body(num_segments, size, pieces, seg_ref, x_ref, scale_ref, bias_ref, up_ref,
          gate_ref, up_bias_ref, gate_bias_ref, out_ref, *kept):
  """One step: chunks of `size` tokens side by side, a strip of tokens at a time."""
  tokens, dtype = x_ref.shape[1], x_ref.dtype

  def products(at):
    y = layer_norm(x_ref[0, at], scale_ref[0], bias_ref[0])
    return [jnp.dot(y, ref[...], precision=precision.of_dtype(dtype),
                    preferred_element_type=jnp.float32) for ref in (up_ref, gate_ref)]

  def gated(pair, at, part, lanes):
    """GEGLU of a part of a strip's products, and its pre-activations written."""
    pair = [(z[part, lanes] + bias[:, lanes]).astype(dtype)
            for z, bias in zip(pair, (up_bias_ref, gate_bias_ref), strict=True)]
    rows = slice(at.start + part.start, at.start + part.stop)
    for ref, z in zip(kept, pair):
      ref[0, rows, lanes] = z
    return geglu(*(z.astype(jnp.float32) for z in pair))

  sums, strips = {}, _spans(tokens, _STRIP)  # (row, column) of the sums -> their values
  following = products(strips[0])
  for i, at in enumerate(strips):
    pair = following
    if i + 1 < len(strips):  # products of the next strip while this one is summed
      following = products(strips[i + 1])
    segments = seg_ref[0, :, at]
    counts = (segments >= 0).astype(jnp.float32).T
    for lanes in _spans(up_ref.shape[1], _PART[1]):
      parts = [(part, gated(pair, at, part, lanes))
               for part in _spans(at.stop - at.start, _PART[0])]
      if num_segments == 1:
        found = _sums_of_chunks(counts, parts, at.start, size)
      else:
        inner = jnp.concatenate([x for _, x in parts])
        found = [(0, _sums_of_segments(segments, inner, out_ref.shape[1], dtype))]
      for row, value in found:
        place = row, lanes.start
        sums[place] = sums[place] + value if place in sums else value
  first = pieces == 1 or pl.program_id(1) % pieces == 0
  for (row, column), value in sums.items():
    place = out_ref.at[0, pl.ds(row, len(value)), pl.ds(column, value.shape[1])]
    place[...] = value if first is True else value + jnp.where(first, 0, place[...])


def _spans(size, step):
  return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _sums_of_chunks(counts, parts, start, size):
  """Pairs of a chunk and [1,f], a sum over some of its tokens.

  counts: [t,1], one for a token that counts; parts: pairs of rows of the strip and
  [n,f]; start: of the strip in its group; size: tokens of a chunk.
  """
  for part, inner in parts:
    inner, at = jnp.where(counts[part] > 0, inner, 0), start + part.start
    for chunk in range(at // size, -(-(start + part.stop) // size)):
      yield chunk, jnp.sum(inner[max(chunk * size - at, 0):(chunk + 1) * size - at], 0,
                           keepdims=True)


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


def block_columns(width: int, inner: int, dtype: Any) -> int:
  """f, the columns of both kernels that stay in VMEM, for states of `width`.

  Raises dispatch.Unsupported if 128 do not fit.
  """
  size, room = jnp.dtype(dtype).itemsize, choices.vmem() * 3 // 4
  for columns in _COLUMNS:
    # Columns of both kernels, tokens and what is kept, double-buffered; float32 tiles
    # of a strip; for float32 the three bfloat16 pieces of each operand as well, and a
    # little that the compiler adds to them.
    operands = width * (2 * columns + _TOKENS)
    need = 2 * size * (operands + 2 * _TOKENS * columns) + 24 * _STRIP * columns
    need += 7 * operands if size == 4 else 0
    if inner % columns == 0 and need <= room:
      return columns
  raise dispatch.Unsupported(
      f'tpu latent_pool keeps 128 columns of width {width} in {room >> 20} MiB of '
      "VMEM, and they do not fit; use impl='blockwise'")
