"""Up-projection, GEGLU and sum per segment in one Mosaic GPU kernel (Hopper).

Grid: (tiles of 128 tokens, blocks of 128 columns of F). A block of three
warpgroups: one copies 64-deep slices of tokens and of both kernels into shared
memory (48 KiB a stage), two compute 64 columns each. The tile is held transposed,
columns by tokens, [64,128] float32 for each of up and gate in registers, so that
the sum over tokens runs along the fast axis of the matrix unit's layout and needs
no shared memory. Nothing but [tiles,S,F] sums is written.

The gradient program makes the pre-activations again in the same way and writes
their gradients, [F,tokens], a block of tokens at a time.
"""

import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from jaxembed.functional import geglu, gelu_and_slope
from jaxembed.kernels import dispatch
from jaxembed.kernels.latent_pool import recompute

_TOKENS = 128  # of a tile
_COLUMNS = 128  # of a block; each of the two computing warpgroups has half
_HALF = _COLUMNS // 2
_DEPTH = 64  # of a slice: 128 bytes, the widest swizzle
_STAGES = 4  # slices in flight; the gradient's result takes the room of one
_TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


@functools.cache
def kernel(interpret: Any = False) -> recompute.Kernel:
  """The two programs; `interpret` (plgpu's parameters) runs them on any device."""
  return recompute.Kernel(
      sums=functools.partial(_sums, interpret=interpret),
      grad=functools.partial(_grad, interpret=interpret))


def check(width: int, inner: int, dtype: Any) -> None:
  """Raises dispatch.Unsupported unless the kernels tile D = width, F = inner."""
  if width % _DEPTH or inner % _COLUMNS:
    raise dispatch.Unsupported(
        f'gpu latent_pool needs D % {_DEPTH} == 0 and F % {_COLUMNS} == 0, got '
        f"D={width}, F={inner}; use impl='blockwise'")
  if jnp.dtype(dtype) != jnp.bfloat16:
    raise dispatch.Unsupported(
        f'gpu latent_pool computes in bfloat16, got {jnp.dtype(dtype)}; '
        "use impl='blockwise'")
  device = jax.devices()[0]  # a CPU when compiling for a GPU that is elsewhere
  if device.platform == 'gpu' and not device.compute_capability.startswith('9.'):
    raise dispatch.Unsupported(
        "gpu latent_pool uses Hopper's matrix instructions (compute capability "
        f"9.x), this GPU has {device.compute_capability}; use impl='blockwise'")


def _sums(mlp, y, segments, num_segments, pieces, interpret):
  """-> [C/pieces,S,F] float32."""
  count, parts = len(y), -(-y.shape[1] // _TOKENS)
  y, segments, rows = _tiles(y, segments, num_segments)
  inner = mlp['up']['kernel'].shape[1]
  out = _launch(_sums_body, mlp, y, segments, (), jax.ShapeDtypeStruct(
      (len(segments), rows, inner), jnp.float32), _STAGES, interpret)
  out = out.reshape(-1, num_segments, inner)[:count * parts]
  return out.reshape(count // pieces, pieces * parts, num_segments, inner).sum(1)


def _grad(mlp, y, segments, d_sums, interpret):
  """-> d_up, d_gate, both [C,T,F] in y's dtype."""
  count, length, _ = y.shape
  num_segments, inner = d_sums.shape[1:]
  pieces = -(-length // _TOKENS)
  y, segments, rows = _tiles(y, segments, num_segments)
  tiles = len(segments)
  d_sums = jnp.repeat(d_sums, pieces, axis=0)
  d_sums = recompute.pad(d_sums, 0, tiles * rows // num_segments)
  shape = jax.ShapeDtypeStruct((inner, tiles * _TOKENS), y.dtype)
  out = _launch(_grad_body, mlp, y, segments, (d_sums.reshape(tiles, rows, inner),),
                (shape, shape), _STAGES - 1, interpret,
                [plgpu.SMEM((2, _HALF, _TOKENS), y.dtype, transforms=_TRANSFORMS)])
  per_tile = rows // num_segments
  size = _size(length)

  def chunks(x):  # [F,tokens] -> [C,T,F]
    x = x.T.reshape(tiles, _TOKENS, inner)[:, :per_tile * size]
    x = x.reshape(tiles * per_tile, size, inner)[:count * pieces]
    return x.reshape(count, pieces * size, inner)[:, :length]

  return tuple(map(chunks, out))


def _sums_body(refs, up, gate, out, *, rows, flat):
  tile, columns = lax.axis_index('tile'), _my_columns()
  up, gate, marks = _pre_activations(refs, up, gate, flat)
  inner = geglu(up, gate)
  for row in range(rows):
    out[tile, row, columns] = jnp.sum(_of_row(inner, marks, row), axis=1)


def _grad_body(refs, up, gate, d_sums, d_up, d_gate, scratch, *, rows, flat):
  tile, columns = lax.axis_index('tile'), _my_columns()
  up, gate, marks = _pre_activations(refs, up, gate, flat)
  gelu, slope = gelu_and_slope(gate)
  d_inner = jnp.zeros_like(up)
  for row in range(rows):
    d_row = _load(d_sums.at[tile, row, columns], 1, flat)
    d_inner += _of_row(lax.broadcast_in_dim(d_row, up.shape, (0,)), marks, row)
  staged = scratch.at[lax.axis_index('wg')]
  tokens = pl.ds(tile * _TOKENS, _TOKENS)
  for out, value in ((d_up, d_inner * gelu), (d_gate, d_inner * up * slope)):
    staged[...] = value.astype(staged.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staged, out.at[columns, tokens])
    plgpu.wait_smem_to_gmem(0)


def _pre_activations(refs, up, gate, flat):
  """Both [64,128] float32, rounded to bfloat16 and back; the tokens' segments."""
  segments, up_bias, gate_bias = refs
  columns = _my_columns()

  def biased(acc, bias):
    z = acc[...]
    z += lax.broadcast_in_dim(_load(bias.at[columns], 1, flat), z.shape, (0,))
    return z.astype(jnp.bfloat16).astype(jnp.float32)

  marks = _load(segments.at[lax.axis_index('tile')], 0, flat)
  return biased(up, up_bias), biased(gate, gate_bias), marks


def _of_row(x, marks, row):
  """x [64,128] on the tokens of sum `row`, zero on others, be they NaN. marks [128]."""
  mask = lax.broadcast_in_dim((marks == row).astype(jnp.float32), x.shape, (1,))
  return jnp.where(mask > 0, x, 0.0)


def _my_columns():
  """This warpgroup's columns of F."""
  first = lax.axis_index('columns') * _COLUMNS + lax.axis_index('wg') * _HALF
  return pl.ds(first, _HALF)


def _load(ref, axis, flat):
  """A vector from global memory, laid out as the tile without its `axis`."""
  if flat:
    return ref[...]
  layout = plgpu.Layout.WGMMA.reduce(axis)
  return plgpu.load(ref, (), layout=layout, optimized=False)


def _launch(body, mlp, y, segments, extra, out, stages, interpret, scratch=()):
  """Runs `body` once per tile and block of columns, after the two products.

  The matrix unit reads both operands transposed from shared memory. The
  interpreter cannot, nor can it load into a layout: there (`flat`) the operands
  are transposed beforehand.
  """
  tiles, width = len(segments), y.shape[1]
  flat = interpret is not False
  inner = mlp['up']['kernel'].shape[1]
  rows = (extra[0] if extra else out).shape[1]
  kernels = [mlp[name]['kernel'].astype(y.dtype) for name in ('up', 'gate')]
  biases = [mlp[name]['bias'].astype(jnp.float32) for name in ('up', 'gate')]
  operands = [x.T if flat else x for x in (y, *kernels)]

  def turn(ref):
    return ref if flat else plgpu.transpose_ref(ref, (1, 0))

  def block(depth_first, size):
    depth_first = depth_first != flat
    shape = (_DEPTH, size) if depth_first else (size, _DEPTH)
    return plgpu.BlockSpec(
        shape, (lambda k: (k, 0)) if depth_first else (lambda k: (0, k)),
        transforms=_TRANSFORMS, memory_space=plgpu.SMEM)

  def program(segments, y, up, gate, up_bias, gate_bias, *rest):
    half = pl.ds(lax.axis_index('wg') * _HALF, _HALF)
    columns = pl.ds(lax.axis_index('columns') * _COLUMNS, _COLUMNS)
    tokens = pl.ds(lax.axis_index('tile') * _TOKENS, _TOKENS)

    def finish(multiply):
      @functools.partial(pl.run_scoped, up=plgpu.ACC((_HALF, _TOKENS)),
                         gate=plgpu.ACC((_HALF, _TOKENS)))
      def _(up, gate):
        multiply((up, gate))
        body((segments, up_bias, gate_bias), up, gate, *rest, rows=rows, flat=flat)

    def multiply(_, y, up, gate, accumulators):
      for acc, w in zip(accumulators, (up, gate)):
        own_half = w.at[half] if flat else w.at[:, half]
        plgpu.wgmma(acc, turn(own_half), turn(y))
      plgpu.wgmma_wait(0)
      return accumulators

    pipeline = plgpu.emit_pipeline_warp_specialized(
        multiply, grid=(width // _DEPTH,), memory_registers=40,
        in_specs=[block(False, _TOKENS), block(True, _COLUMNS),
                  block(True, _COLUMNS)],
        wg_axis='wg', num_compute_wgs=2, max_concurrent_steps=stages,
        compute_context=finish)
    pick = (lambda ref, s: ref.at[s]) if flat else (lambda ref, s: ref.at[:, s])
    pipeline(y.at[:, tokens] if flat else y.at[tokens], pick(up, columns),
             pick(gate, columns))

  return plgpu.kernel(
      program, out_type=out, scratch_types=scratch, grid=(tiles, inner // _COLUMNS),
      grid_names=('tile', 'columns'), num_threads=3, thread_name='wg',
      compiler_params=plgpu.CompilerParams(
          lowering_semantics=plgpu.LoweringSemantics.Lane),
      interpret=interpret or None)(segments, *operands, *biases, *extra)


def _tiles(y, segments, num_segments):
  """y [C,T,D] -> [tiles*128,D], segments [C,T] -> [tiles,128], sums per tile.

  Longer chunks are cut into pieces of 128 tokens; shorter ones share a tile.
  """
  count, length, width = y.shape
  pieces, size = -(-length // _TOKENS), _size(length)
  y = recompute.pad(y, 1, pieces * size).reshape(count * pieces, size, width)
  segments = recompute.pad(segments, 1, pieces * size, -1).reshape(-1, size)
  y, segments, rows = recompute.group(y, segments, num_segments, _TOKENS, 8)
  y = recompute.pad(y, 1, _TOKENS).reshape(-1, width)
  return y, recompute.pad(segments, 1, _TOKENS, -1), rows


def _size(length):
  """Tokens of a piece, a multiple of 8."""
  return min(-(-length // 8) * 8, _TOKENS)
