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

A tile is worked on in sub-tiles of _SUB scores, written out one after another, so that
the compiler schedules the epilogue of one beside the product of the next. A tile that
holds no pair for ids, owners or groups to mask (flags.py; a level per tile, prefetched)
takes a way without these masks. Logits are to base 2 inside the kernels.

Mask vectors arrive lane-major [1,B] (as [B,1] each would occupy 512 bytes a row in
HBM); those of rows are spread over the lanes once per row block, [bm,128] in scratch.
D is not blocked: both kernels hold whole vectors, so one product decides on which side
of a threshold a pair is.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.kernels import dispatch
from jaxembed.kernels.contrastive import blockwise, flags, tile
from jaxembed.kernels.contrastive.options import MASKED, MaskVectors, Options, Sums

_LANES = 128
_SUBLANES = 8
_SUB = 256, 256  # rows and columns whose product and epilogue are written out at once
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
    scratch = [pltpu.VMEM((bm, _LANES), t) for t in _STATE]
  out = _call(_sums_kernel, 'contrastive_sums', q, k, scale, (row, col), opts,
              (bm, bn), marks, (first, 0), shapes, specs, scratch, 0)
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
      _ds_kernel, 'contrastive_ds', q, k, scale, (row, col), opts, block, marks,
      (at[0] // steps[0], at[1] // steps[1]), jax.ShapeDtypeStruct((b, n), dtype),
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


def _needed(side: MaskVectors, level: int) -> MaskVectors:
  """The masks of a tile of that level."""
  if level == flags.ALL:
    return side
  return dataclasses.replace(
      side, ids=side.ids if level == flags.IDS else (), owner=None, group=None)


# --- Kernels -----------------------------------------------------------------


class _Static(NamedTuple):
  """What a kernel is specialised for."""

  structure: Any  # of (row, col), trees of vectors
  num_rows: int  # leaves of row
  opts: Options
  sizes: tuple[int, int]
  block: tuple[int, int]
  levels: tuple[int, ...]


def _by_level(static, marks_ref, first_ref, run):
  """run(level) with the masks that this tile needs."""
  if len(static.levels) == 1:
    run(static.levels[0])
    return
  found = flags.level_at(marks_ref, first_ref[0] + pl.program_id(0),
                         first_ref[1] + pl.program_id(1))
  for level in static.levels:
    pl.when(found == level)(functools.partial(run, level))


def _spread(static, sides, wide):
  """Row vectors over the lanes, once per row block."""
  @pl.when(pl.program_id(1) == 0)
  def _():
    for ref, out in zip(sides[:static.num_rows], wide, strict=True):
      out[...] = jnp.broadcast_to(ref[...].T, out.shape)


def _sub_tiles(bm, bn):
  """(rows, columns) of each sub-tile: all rows of some columns, then the next."""
  r, w = min(_SUB[0], bm), min(_SUB[1], bn)
  return [(slice(z, min(z + r, bm)), slice(x, min(x + w, bn)))
          for x in range(0, bn, w) for z in range(0, bm, r)]


def _chunks(columns):
  """Slices of 128 columns: of the tile, and of its sub-tile."""
  return [(slice(y, y + _LANES), slice(y - columns.start, y - columns.start + _LANES))
          for y in range(columns.start, columns.stop, _LANES)]


def _vectors(static, sides, wide, rows, columns):
  """The trees (row, col) for 128 columns: [r,128] and [1,128]."""
  return jax.tree.unflatten(static.structure, [
      *(ref[rows] for ref in wide),
      *(ref[:, columns] for ref in sides[static.num_rows:])])


def _sums_kernel(static, marks_ref, first_ref, scale_ref, q_ref, k_ref, *refs):
  opts, j = static.opts, pl.program_id(1)
  sides, refs = _split(refs, static.structure.num_leaves)
  out, refs = _split(refs, 3 * (opts.rows + opts.cols))
  scratch, wide = _split(refs, 3 * opts.rows)
  _spread(static, sides, wide)
  if opts.rows:
    @pl.when(j == 0)
    def _():
      for ref, x in zip(scratch, tile.start(scratch[0].shape, jnp.float32),
                        strict=True):
        ref[...] = x

  def run(level):
    for columns, found in _columns(static, level, scale_ref, q_ref, k_ref, sides, wide,
                                   scratch):
      for ref, x in zip(out[-3:], found, strict=True):
        ref[:, columns] = x

  _by_level(static, marks_ref, first_ref, run)
  if opts.rows:
    @pl.when(j == pl.num_programs(1) - 1)
    def _():
      top, total, dropped = (ref[...] for ref in scratch)
      best = top.max(1, keepdims=True)
      if not opts.bounded:
        total = total * jnp.exp2(top - best)
      found = best, total.sum(1, keepdims=True), dropped.sum(
          1, keepdims=True, dtype=jnp.int32)
      for ref, x in zip(out[:3], found, strict=True):
        ref[...] = x.T


def _columns(static, level, scale_ref, q_ref, k_ref, sides, wide, scratch):
  """Adds the tile to its rows' sums; yields (columns, sums) of 128 columns each."""
  opts, (bm, bn) = static.opts, (q_ref.shape[0], k_ref.shape[0])
  states = {}
  for rows, columns in _sub_tiles(bm, bn):
    s = _dot(q_ref[rows], k_ref[columns])
    parts = []
    for at, part in _chunks(columns):
      row, col = (_needed(side, level) for side in _vectors(
          static, sides, wide, rows, at))
      parts.append((_masked_ends(static, level, tile.logits(
          s[:, part], scale_ref[0], row, col, opts), rows, at), at,
          tile.side_scale(scale_ref[0], row, col)))
    exps = {}  # by their logits: rows and columns share those of one shift
    if opts.rows:
      old = tuple(ref[rows] for ref in scratch)
      new = _fold(old, [(d[0], scale) for d, _, scale in parts], opts, exps)
      for ref, x in zip(scratch, new, strict=True):
        ref[rows] = x
    if opts.cols:
      for (_, direction), at, scale in parts:
        state = states.get(at.start) or _empty_columns()
        states[at.start] = _fold_columns(state, direction, scale, opts, exps)
        if rows.stop == bm:
          yield at, _across_sublanes(states.pop(at.start), opts)


def _masked_ends(static, level, directions, rows, at):
  """Both directions with the pairs beyond the arrays masked."""
  (b, n), (r, c) = static.sizes, directions
  bm, bn = static.block
  if level != flags.ALL:
    return directions
  if r is not None and n % bn:
    r = _within(r, n, pl.program_id(1) * bn + at.start, 1)
  if c is not None and b % bm:
    c = _within(c, b, pl.program_id(0) * bm + rows.start, 0)
  return r, c


def _within(direction, size, start, axis):
  """The direction with pairs beyond the array masked."""
  z, keep = direction
  inside = start + lax.broadcasted_iota(jnp.int32, z.shape, axis) < size
  return jnp.where(inside, z, MASKED), inside if keep is None else keep & inside


def _exp(z, less, opts, exps):
  """2**(z - less); with a constant shift once for both directions."""
  if not opts.bounded:
    return jnp.exp2(z - less)
  return exps.setdefault(id(z), (jnp.exp2(z - less), z))[0]


def _fold(old, parts, opts, exps):
  """Lane-private running (maximum, sum, dropped) with some columns more."""
  top, total, dropped = old
  new = functools.reduce(jnp.maximum, [z for (z, _), _ in parts], top)
  if not opts.bounded:
    total = total * jnp.exp2(top - new)
  for (z, keep), scale in parts:
    total += _exp(z, tile.shift(scale, opts) if opts.bounded else new, opts, exps)
    if keep is not None:
      dropped += jnp.where(keep, 0, 1)
  return new, total, dropped


def _empty_columns():
  return tile.start((_SUBLANES, _LANES), jnp.float32)


def _fold_columns(old, direction, scale, opts, exps):
  """Sublane-private running sums of 128 columns with some rows more."""
  top, total, dropped = old
  z, keep = direction

  def fold(x, reduce):
    return reduce(x.reshape(-1, _SUBLANES, _LANES), axis=0)

  new = jnp.maximum(top, fold(z, jnp.max))
  if opts.bounded:
    total += fold(_exp(z, tile.shift(scale, opts), opts, exps), jnp.sum)
  else:
    less = jnp.broadcast_to(new, (z.shape[0] // _SUBLANES, *new.shape))
    total = total * jnp.exp2(top - new) + fold(
        jnp.exp2(z - less.reshape(z.shape)), jnp.sum)
  if keep is not None:
    dropped += fold(jnp.where(keep, 0, 1), jnp.sum)
  return new, total, dropped


def _across_sublanes(state, opts):
  """[1,128] each of [8,128]."""
  top, total, dropped = state
  best = top.max(0, keepdims=True)
  if not opts.bounded:
    total = total * jnp.exp2(top - best)
  return best, total.sum(0, keepdims=True), dropped.sum(
      0, keepdims=True, dtype=jnp.int32)


def _ds_kernel(static, marks_ref, first_ref, scale_ref, q_ref, k_ref, *refs):
  opts = static.opts
  sides, (out_ref, *wide) = _split(refs, static.structure.num_leaves)
  _spread(static, sides, wide)

  def run(level):
    for rows, columns in _sub_tiles(q_ref.shape[0], k_ref.shape[0]):
      s = _dot(q_ref[rows], k_ref[columns])
      for at, part in _chunks(columns):
        (row, row_ct), (col, col_ct) = _vectors(static, sides, wide, rows, at)
        row, col = _needed(row, level), _needed(col, level)
        z = tile.logits(s[:, part], scale_ref[0], row, col, opts)
        scale = tile.side_scale(scale_ref[0], row, col)
        p = tile.probabilities(z, scale, opts, row_ct, col_ct, jnp.exp2)
        out_ref[rows, at] = p.astype(out_ref.dtype)

  _by_level(static, marks_ref, first_ref, run)


def _dot(q, k):
  return lax.dot_general(
      q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32,
      precision=precision.of_dtype(q.dtype))


def _split(refs, count):
  return refs[:count], refs[count:]


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
  static = _Static(jax.tree.structure(sides), len(row), opts, (b, n), block,
                   levels)
  at_row = pl.BlockSpec((1, bm), lambda i, j, *_: (0, i))
  at_col = pl.BlockSpec((1, bn), lambda i, j, *_: (0, j))
  wide = [pltpu.VMEM((bm, _LANES), x.dtype) for x in row]
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
  return pl.cdiv(size, _LANES) * _LANES


def _check(q, opts: Options):
  if not opts.interpret and dispatch.platform() != 'tpu':
    raise dispatch.Unsupported(
        "impl='tpu' needs a TPU and this computation runs on "
        f"{dispatch.platform()}; use impl='auto' or 'blockwise'")
  if opts.dtype == 'float64':
    raise dispatch.Unsupported(
        "impl='tpu' computes in float32 at most; use impl='blockwise' for float64")
