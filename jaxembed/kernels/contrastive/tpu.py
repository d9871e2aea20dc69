"""Masked two-sided log-sum-exp as Pallas TPU kernels.

Two kernels, each one matrix product per tile with an epilogue on the scores
while they are in VMEM:

  sums  grid (row blocks, column blocks), columns innermost. q [bm,D] stays, k
        [bn,D] streams. Row statistics live in scratch, one per lane ([bm,128]:
        column chunks of 128 are folded by element-wise max and add), and are
        reduced across lanes once, at the last column block. Column statistics
        of a tile are complete for its rows and go out as [row blocks,1,N]
        partials, which XLA merges: nothing is carried between row blocks, so they
        may run on two cores, and the order of sums is fixed.
  ds    the same grid, no statistics. Writes dS of a super-tile in the operands' type;
        `blockwise.backward` multiplies it with k and q by XLA's own products.

A tile is worked on in sub-tiles (tpu_kernels.py), written out one after another, so
that the compiler schedules the epilogue of one beside the product of the next. A tile
that holds no pair for ids, owners or groups to mask (flags.py; a level per tile,
prefetched) takes a way without these masks. Logits are to base 2 inside the kernels.

Mask vectors arrive lane-major [1,B] (as [B,1] each would occupy 512 bytes a row in
HBM); those of rows are spread over the lanes once per row block, [bm,128] in scratch.
D is not blocked: both kernels hold whole vectors, so one product decides on which side
of a threshold a pair is.
"""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed.kernels import dispatch
from jaxembed.kernels.contrastive import blockwise, flags, tile, tpu_kernels
from jaxembed.kernels.contrastive.options import MaskVectors, Options, Sums
from jaxembed.kernels.contrastive.tpu_kernels import LANES

# Half of the smallest VMEM (v5p: 64 MiB) is for the blocks we count; the compiler
# keeps temporaries of its own, up to the limit.
_VMEM_BLOCKS = 40 << 20
_VMEM_LIMIT = 56 << 20
# Column statistics of row blocks that wait in HBM to be merged.
_PARTIAL_BYTES = 64 << 20
_STATE = (jnp.float32, jnp.float32, jnp.int32)  # maximum, sum, dropped
_LOG2E = math.log2(math.e)


def blocks(b: int, n: int, d: int, itemsize: int) -> tuple[int, int]:
  """Rows and columns of a tile, the largest that fits VMEM.

  Raises dispatch.Unsupported if none does.
  """
  for bm, bn in ((1024, 1024), (1024, 512), (512, 512), (512, 256), (256, 256),
                 (256, 128), (128, 128)):
    # Inputs are double-buffered; about four float32 tiles are alive.
    if 2 * (bm + bn) * d * itemsize + 4 * bm * bn * 4 <= _VMEM_BLOCKS:
      return min(bm, _up(b)), min(bn, _up(n))
  raise dispatch.Unsupported(
      f'tpu contrastive keeps whole vectors in VMEM; width {d} of {itemsize} bytes '
      "does not fit with 128 rows: use impl='blockwise', or bfloat16")


def forward(q: jax.Array, k: jax.Array, scale: jax.Array,
            row: MaskVectors, col: MaskVectors, opts: Options
            ) -> tuple[Sums | None, Sums | None]:
  """Row sums and column sums (None where not asked).  q [B,D], k [N,D]."""
  _check(q, opts)
  (b, d), n = q.shape, k.shape[0]
  q, k = q.astype(opts.dtype), k.astype(opts.dtype)
  bm, bn = blocks(b, n, d, k.dtype.itemsize)
  marks = _marks(row, col, (b, n), (bm, bn), opts, ends=True)
  # So many row blocks per call that their column partials stay small.
  step = max(_PARTIAL_BYTES // (12 * n), 1) * bm if opts.cols else b

  def some_rows(carry, i, size):
    rows, cols = carry
    qi, ri = (blockwise.rows_at(x, i, size) for x in (q, row))
    r, c = _sums(qi, k, scale, ri, col, opts, bm, bn, marks, i // bm)
    if c is not None:
      top, total, kept = (jnp.concatenate([x[None], y])
                          for x, y in zip(cols, c, strict=True))
      cols = tile.merge((top, total, kept), opts)
    return blockwise.put_rows(rows, i, r) if opts.rows else None, cols

  rows = tile.start((b,), jnp.float32) if opts.rows else None
  cols = tile.start((n,), jnp.float32) if opts.cols else None
  rows, cols = blockwise.sweep(b, min(step, b), some_rows, (rows, cols))
  return (tile.finish(rows, tile.side_scale(scale, row), opts) if opts.rows else None,
          tile.finish(cols, tile.side_scale(scale, col), opts) if opts.cols else None)


def _sums(q, k, scale, row, col, opts, bm, bn, marks, first):
  """(maximum, sum, kept) of rows, each [B], and of columns, each [row blocks,N]."""
  b, n = q.shape[0], k.shape[0]
  grid = pl.cdiv(b, bm), pl.cdiv(n, bn)
  at_row = pl.BlockSpec((1, bm), lambda i, j, *_: (0, i))
  at_part = pl.BlockSpec((None, 1, bn), lambda i, j, *_: (i, 0, j))
  shapes, specs, scratch = [], [], []
  for use, shape, spec in ((opts.rows, (1, b), at_row),
                           (opts.cols, (grid[0], 1, n), at_part)):
    if use:
      shapes += [jax.ShapeDtypeStruct(shape, t) for t in _STATE]
      specs += [spec] * 3
  if opts.rows:
    scratch = [pltpu.VMEM((bm, LANES), t) for t in _STATE]
  out = _call(tpu_kernels.sums_kernel, 'contrastive_sums', q, k, scale, (row, col),
              opts, (bm, bn), marks, (first, 0), shapes, specs, scratch, 0)
  unit = math.log(2)  # of the maxima, back to base e
  rows = cols = None
  if opts.rows:
    top, total, dropped = (x[0] for x in out[:3])
    rows = top * unit, total, grid[1] * bn - dropped
  if opts.cols:
    top, total, dropped = (x[:, 0] for x in out[-3:])
    cols = top * unit, total, bm - dropped
  return rows, cols


def backward(q: jax.Array, k: jax.Array, scale: jax.Array,
             row: MaskVectors, col: MaskVectors, opts: Options,
             row_lse: jax.Array | None, row_ct: jax.Array | None,
             col_lse: jax.Array | None, col_ct: jax.Array | None, *,
             final: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
  """blockwise.backward with dS from the kernel."""
  _check(q, opts)
  b, n = q.shape[0], k.shape[0]
  sides = blockwise.tile_shape(b, n, opts.tile_bytes)
  most = blocks(*sides, q.shape[1], jnp.dtype(opts.dtype).itemsize)
  steps = tuple(min(side, block) for side, block in zip(sides, most, strict=True))
  fits = all(side % step == 0 for side, step in zip(sides, steps, strict=True))
  marks = (_marks(row, col, (b, n), steps, opts, ends=False) if fits
           else (None, (flags.ALL,)))
  ds = functools.partial(_ds, blocks=most, marks=marks, steps=steps)
  return blockwise.backward(q, k, scale, row, col, opts, row_lse, row_ct,
                            col_lse, col_ct, final=final, dlogits_fn=ds)


def _ds(q, k, scale, row, col, opts, at, *, blocks, marks, steps):
  """dS of a super-tile, [B,N], in the operands' type."""
  b, n = q.shape[0], k.shape[0]
  dtype = q.dtype if opts.round_dlogits else jnp.dtype(jnp.float32)
  block = min(blocks[0], _up(b)), min(blocks[1], _up(n))
  return _call(
      tpu_kernels.ds_kernel, 'contrastive_ds', q, k, scale, (row, col), opts, block,
      marks, (at[0] // steps[0], at[1] // steps[1]),
      jax.ShapeDtypeStruct((b, n), dtype),
      pl.BlockSpec(block, lambda i, j, *_: (i, j)), [], b * n * dtype.itemsize)


# --- Levels ------------------------------------------------------------------


def _marks(row, col, sizes, steps, opts, ends):
  """(Packed levels of all tiles, those that occur), None for the first where every
  tile takes the whole epilogue.

  ends: scores beyond the arrays are masked with the rest, so tiles that reach there
  need all. None as well where an owner weighs every logit.
  """
  parts = row.owner is not None or row.group is not None
  ragged = [ends and use and size % step != 0 for use, size, step in zip(
      (opts.cols, opts.rows), sizes, steps, strict=True)]
  if opts.hardness[0] != opts.hardness[1] or not (row.ids or parts or any(ragged)):
    return None, (flags.ALL,)
  found = flags.tile_levels(row, col, sizes, steps)
  if ragged[0]:
    found = found.at[-1].set(flags.ALL)
  if ragged[1]:
    found = found.at[:, -1].set(flags.ALL)
  levels = flags.PLAIN, *[flags.IDS] * bool(row.ids), *[flags.ALL] * (
      parts or any(ragged))
  return flags.pack(found), levels


# --- Around them -------------------------------------------------------------


def _call(kernel, name, q, k, scale, sides, opts, block, marks, first, shapes, specs,
          scratch, written):
  """A kernel over all tiles of q and k, with the vectors `sides` of both."""
  (b, d), n = q.shape, k.shape[0]
  words, levels = marks
  (bm, bn), grid = block, (pl.cdiv(b, block[0]), pl.cdiv(n, block[1]))
  row, col = jax.tree.leaves(sides[0]), jax.tree.leaves(sides[1])
  scale, sides, opts = _to_base_2(scale, sides, opts)
  leaves = jax.tree.leaves(sides)
  static = tpu_kernels.Static(jax.tree.structure(sides), len(row), opts, (b, n), block,
                   levels)
  at_row = pl.BlockSpec((1, bm), lambda i, j, *_: (0, i))
  at_col = pl.BlockSpec((1, bn), lambda i, j, *_: (0, j))
  wide = [pltpu.VMEM((bm, LANES), x.dtype) for x in row]
  spec = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2, grid=grid,
      in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM),
                pl.BlockSpec((bm, d), lambda i, j, *_: (i, 0)),
                pl.BlockSpec((bn, d), lambda i, j, *_: (j, 0)),
                *[at_row] * len(row), *[at_col] * len(col)],
      out_specs=specs, scratch_shapes=[*scratch, *wide])
  if words is None:
    words = jnp.zeros((1, 1), jnp.int32)
  streamed = (b + grid[0] * n) * d * q.dtype.itemsize
  return pl.pallas_call(
      functools.partial(kernel, static), grid_spec=spec, out_shape=shapes,
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=_VMEM_LIMIT),
      cost_estimate=pl.CostEstimate(
          flops=2 * b * n * d, transcendentals=b * n,
          bytes_accessed=streamed + written),
      interpret=pltpu.InterpretParams() if opts.interpret else False, name=name,
  )(words, jnp.stack([jnp.asarray(x, jnp.int32) for x in first]), scale.reshape(1),
    q, k, *(x[None, :] for x in leaves))


def _to_base_2(scale, sides, opts):
  """Scales, biases and log-sum-exps in units of log 2: an exponential less a product.

  sides: (row, col), each a MaskVectors or (MaskVectors, (lse or None, cotangent)).
  """
  def turn(side):
    if isinstance(side, MaskVectors):
      return dataclasses.replace(
          side, scale=times(side.scale), bias=times(side.bias))
    masks, ct = side
    return turn(masks), None if ct is None else (times(ct[0]), ct[1])

  def times(x):
    return None if x is None else x * _LOG2E

  hardness = opts.hardness[0] * _LOG2E, opts.hardness[1] * _LOG2E
  return (scale * _LOG2E, tuple(map(turn, sides)),
          dataclasses.replace(opts, hardness=hardness))


def _up(size: int) -> int:
  return pl.cdiv(size, LANES) * LANES


def _check(q, opts: Options):
  if not opts.interpret and dispatch.platform() != 'tpu':
    raise dispatch.Unsupported(
        "impl='tpu' needs a TPU and this computation runs on "
        f"{dispatch.platform()}; use impl='auto' or 'blockwise'")
  if opts.dtype == 'float64':
    raise dispatch.Unsupported(
        "impl='tpu' computes in float32 at most; use impl='blockwise' for float64")
