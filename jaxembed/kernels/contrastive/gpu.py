"""Masked two-sided log-sum-exp as Pallas Mosaic GPU kernels, Hopper and newer.

One warp-specialised matrix product with two epilogues on the accumulator:

  sums  per tile: maximum, sum of exponentials and count per row (of its columns)
        and per column (of its rows), written as [column tiles,B] and [row tiles,N]
        partials, 1/20 byte per score and direction, which XLA merges in order.
  ds    dS of the tile, in bfloat16; `blockwise.backward` multiplies it with k and q
        by XLA's own products. An output-stationary backward pass would need a D-wide
        float32 accumulator, 2 MiB at D = 4096; shared memory has 227 KiB.

A block is 256 x 128 scores: one producer warpgroup streams q and k through shared
memory with TMA, 64 of D at a time, two consumer warpgroups hold 128 x 128 float32
accumulators in registers and evaluate masks and exponentials there. No atomics:
every result has one writer.
"""

import dataclasses
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from jaxembed.kernels import dispatch
from jaxembed.kernels.contrastive import blockwise, tile
from jaxembed.kernels.contrastive.options import MaskVectors, Options, Sums

_GROUPS = 2  # consumer warpgroups, one above the other
_ROWS = 128  # of scores per warpgroup
_BM = _GROUPS * _ROWS
_BN = 128
_BD = 64  # one 128-byte swizzle of bfloat16
_STAGES = 3
_SLICE = 64  # columns of dS per copy to global memory


def forward(q: jax.Array, k: jax.Array, scale: jax.Array,
            row: MaskVectors, col: MaskVectors, opts: Options
            ) -> tuple[Sums | None, Sums | None]:
  """Row sums and column sums (None where not asked).  q [B,D], k [N,D]."""
  _check(q, k, opts)
  if col.scale is not None:  # Mosaic finds no register layout for the column's tile
    raise dispatch.Unsupported(
        "impl='gpu' takes no scale per column; swap q and k, and ask for rows")
  b, n = q.shape[0], k.shape[0]
  shapes = []
  if opts.rows:
    shapes += [jax.ShapeDtypeStruct((n // _BN, b), jnp.float32)] * 3
  if opts.cols:
    shapes += [jax.ShapeDtypeStruct((b // _ROWS, n), jnp.float32)] * 3
  out = _product(q, k, _scaled(q, scale, row), _scaled(k, scale, col), opts, shapes,
                 _sums)
  return (_finish(out[:3], tile.side_scale(scale, row), opts) if opts.rows else None,
          _finish(out[-3:], scale, opts) if opts.cols else None)


def backward(q: jax.Array, k: jax.Array, scale: jax.Array,
             row: MaskVectors, col: MaskVectors, opts: Options,
             row_lse: jax.Array | None, row_ct: jax.Array | None,
             col_lse: jax.Array | None, col_ct: jax.Array | None, *,
             final: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
  """blockwise.backward with dS from the kernel."""
  _check(q, k, opts)
  return blockwise.backward(q, k, scale, row, col, opts, row_lse, row_ct,
                            col_lse, col_ct, final=final, dlogits_fn=_ds)


def _ds(q, k, scale, row, col, opts, at):
  """dS of a super-tile, [B,N] bfloat16."""
  del at
  shape = jax.ShapeDtypeStruct((q.shape[0], k.shape[0]), jnp.bfloat16)
  row, col = (_scaled(x, scale, side, vectors)
              for x, (side, vectors) in ((q, row), (k, col)))
  return _product(q, k, row, col, opts, [shape], _ds_tile)[0]


def _scaled(x, scale, side, *vectors):
  """What comes with x's rows, their scales first: the common one comes as a vector."""
  scale = jnp.broadcast_to(tile.side_scale(scale, side), x.shape[:1])
  return scale, dataclasses.replace(side, scale=None), *vectors


def _finish(parts, scale, opts):
  """Sums of a direction by those of its tiles, each [tiles,N]."""
  top, total, kept = tile.merge(parts, opts)
  return tile.finish((top, total, kept), scale, opts)


# --- The product -------------------------------------------------------------


def _product(q, k, row, col, opts, shapes, epilogue):
  """Runs `epilogue` on every tile of q @ k.T; returns arrays of `shapes`."""
  q, k = q.astype(opts.dtype), k.astype(opts.dtype)
  trees = row, col
  rows, cols = (jax.tree.leaves(tree) for tree in trees)
  return plgpu.kernel(
      functools.partial(_kernel, jax.tree.structure(trees), len(rows), opts, epilogue),
      out_type=shapes,
      grid=(k.shape[0] // _BN, q.shape[0] // _BM), grid_names=('column', 'row'),
      num_threads=_GROUPS + 1, thread_name='group',
      compiler_params=plgpu.CompilerParams(
          lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
  )(q, k.T, *rows, *cols)


def _kernel(structure, num_rows, opts, epilogue, q, k, *refs):
  vectors, out = refs[:structure.num_leaves], refs[structure.num_leaves:]
  group, i, j = (lax.axis_index(name) for name in ('group', 'row', 'column'))
  own_rows = pl.ds(group * _ROWS, _ROWS)
  rows = pl.ds(i * _BM + group * _ROWS, _ROWS)
  cols = pl.ds(j * _BN, _BN)
  swizzle = (plgpu.TilingTransform((8, _BD)), plgpu.SwizzleTransform(128))

  def pipeline(body, context):
    return plgpu.emit_pipeline_warp_specialized(
        body, grid=(q.shape[1] // _BD,), memory_registers=40,
        in_specs=[
            plgpu.BlockSpec((_BM, _BD), lambda d: (0, d), transforms=swizzle),
            plgpu.BlockSpec((_BD, _BN), lambda d: (d, 0), transforms=swizzle)],
        wg_axis='group', num_compute_wgs=_GROUPS, max_concurrent_steps=_STAGES,
        compute_context=context)

  def multiply(_, q_smem, k_smem, acc):
    plgpu.wgmma(acc, q_smem.at[own_rows], k_smem)
    plgpu.wgmma_wait(0)
    return acc

  @functools.partial(
      pl.run_scoped, collective_axes='group',
      allocated=pipeline(_no_op, _no_op).get_allocations(q, k),
      vector_smem=[plgpu.SMEM((_GROUPS, _ROWS if n < num_rows else _BN), x.dtype)
                   for n, x in enumerate(vectors)],
      out_smem=epilogue.scratch(opts, swizzle),
      arrived=plgpu.Barrier(num_barriers=_GROUPS, num_arrivals=len(vectors)))
  def _(allocated, vector_smem, out_smem, arrived):
    def compute(run):
      for n, (ref, smem) in enumerate(zip(vectors, vector_smem, strict=True)):
        plgpu.copy_gmem_to_smem(ref.at[rows if n < num_rows else cols],
                                smem.at[group], arrived.at[group])

      @functools.partial(pl.run_scoped, acc=plgpu.ACC((_ROWS, _BN), jnp.float32))
      def _(acc):
        run(acc)
        s = acc[...]
        plgpu.barrier_wait(arrived.at[group])
        # The column's copy of the scale is for vectors; unused tiles would only
        # burden the search for register layouts.
        tiles = [None if n == num_rows else
                 lax.broadcast_in_dim(smem[group], s.shape, [0 if n < num_rows else 1])
                 for n, smem in enumerate(vector_smem)]
        epilogue(s, *jax.tree.unflatten(structure, tiles), opts, out,
                 [x.at[group] for x in out_smem],
                 (i * _GROUPS + group, rows, j, cols))

    pipeline(multiply, compute)(q.at[pl.ds(i * _BM, _BM)], k.at[:, cols],
                                allocations=allocated)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _no_op(*_, **__):
  """Allocations do not depend on what the pipeline computes."""


# --- Epilogues ---------------------------------------------------------------


def _sums(s, row, col, opts, out, smem, place):
  """Writes (maximum, sum, count) of the tile's rows and columns."""
  (scale, row), (_, col) = row, col
  i, rows, j, cols = place
  directions = tile.logits(s, scale, row, col, opts)
  targets = [(1, (j, rows)), (0, (i, cols))]
  for (axis, at), direction in zip(targets, directions, strict=True):
    if direction is None:
      continue
    z, keep = direction
    top = jnp.maximum(z.max(axis), tile.FLOOR)
    shift = (tile.shift(scale, opts) if opts.bounded else
             lax.broadcast_in_dim(top, z.shape, [1 - axis]))
    total = jnp.exp(z - shift).sum(axis)
    kept = (jnp.full_like(top, z.shape[axis]) if keep is None
            else jnp.where(keep, 1.0, 0.0).sum(axis))
    for value, buffer in zip((top, total, kept), smem[:3], strict=True):
      buffer[...] = value
    plgpu.commit_smem()
    for ref, buffer in zip(out[:3], smem[:3], strict=True):
      plgpu.copy_smem_to_gmem(buffer, ref.at[at])
    out, smem = out[3:], smem[3:]


def _sums_scratch(opts, _):
  buffers = [plgpu.SMEM((_GROUPS, _ROWS), jnp.float32)] * 3 if opts.rows else []
  return buffers + (
      [plgpu.SMEM((_GROUPS, _BN), jnp.float32)] * 3 if opts.cols else [])


def _ds_tile(s, row, col, opts, out, smem, place):
  """Writes dS of the tile."""
  (scale, row, row_ct), (_, col, col_ct) = row, col
  _, rows, j, _ = place
  z = tile.logits(s, scale, row, col, opts)
  p = tile.probabilities(z, scale, opts, row_ct, col_ct).astype(jnp.bfloat16)
  for n, buffer in enumerate(smem):
    buffer[...] = p[:, n * _SLICE:(n + 1) * _SLICE]
  plgpu.commit_smem()
  for n, buffer in enumerate(smem):
    plgpu.copy_smem_to_gmem(
        buffer, out[0].at[rows, pl.ds(j * _BN + n * _SLICE, _SLICE)])


def _ds_scratch(_, swizzle):
  return [plgpu.SMEM((_GROUPS, _ROWS, _SLICE), jnp.bfloat16, transforms=swizzle)
          ] * (_BN // _SLICE)


_sums.scratch, _ds_tile.scratch = _sums_scratch, _ds_scratch


def _check(q, k, opts: Options):
  if not opts.interpret and dispatch.platform() != 'gpu':
    raise dispatch.Unsupported(
        "impl='gpu' needs a Hopper GPU or newer and this computation runs on "
        f"{dispatch.platform()}; use impl='auto' or 'blockwise'")
  if opts.dtype != 'bfloat16':
    raise dispatch.Unsupported(
        f"impl='gpu' multiplies bfloat16, not {opts.dtype}; set dtype='bfloat16' or "
        "use impl='blockwise'")
  if uneven := uneven_sizes(q.shape[0], q.shape[1], len(k)):
    raise dispatch.Unsupported(
        f"impl='gpu' needs {uneven}; pad them, or use impl='blockwise'")


def uneven_sizes(rows: int, width: int, columns: int) -> str:
  """What of the sizes a block does not divide, in words; '': nothing."""
  for name, size, step in (('rows', rows, _BM), ('columns', columns, _BN),
                           ('width', width, _BD)):
    if size % step:
      return f'{name} in multiples of {step}, got {size}'
  return ''
