"""Bodies of the Pallas TPU kernels of masked log-sum-exp: one tile of scores.

tpu.py lays the tiles out and calls them; it says what they write and where.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.kernels.contrastive import flags, tile
from jaxembed.kernels.contrastive.options import MASKED, MaskVectors, Options

LANES = 128
_SUBLANES = 8
_SUB = 256, 256  # rows and columns whose product and epilogue are written out at once


class Static(NamedTuple):
  """What a kernel is specialised for."""

  structure: Any  # of (row, col), trees of vectors
  num_rows: int  # leaves of row
  opts: Options
  sizes: tuple[int, int]
  block: tuple[int, int]
  levels: tuple[int, ...]


def _needed(side: MaskVectors, level: int) -> MaskVectors:
  """The masks of a tile of that level."""
  if level == flags.ALL:
    return side
  return dataclasses.replace(
      side, ids=side.ids if level == flags.IDS else (), owner=None, group=None)


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
  return [(slice(y, y + LANES), slice(y - columns.start, y - columns.start + LANES))
          for y in range(columns.start, columns.stop, LANES)]


def _vectors(static, sides, wide, rows, columns):
  """The trees (row, col) for 128 columns: [r,128] and [1,128]."""
  return jax.tree.unflatten(static.structure, [
      *(ref[rows] for ref in wide),
      *(ref[:, columns] for ref in sides[static.num_rows:])])


def sums_kernel(static: Static, marks_ref: Any, first_ref: Any, scale_ref: Any,
                q_ref: Any, k_ref: Any, *refs: Any) -> None:
  """Adds a tile to the running sums of its rows, and writes those of its columns."""
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
  return tile.start((_SUBLANES, LANES), jnp.float32)


def _fold_columns(old, direction, scale, opts, exps):
  """Sublane-private running sums of 128 columns with some rows more."""
  top, total, dropped = old
  z, keep = direction

  def fold(x, reduce):
    return reduce(x.reshape(-1, _SUBLANES, LANES), axis=0)

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


def ds_kernel(static: Static, marks_ref: Any, first_ref: Any, scale_ref: Any,
              q_ref: Any, k_ref: Any, *refs: Any) -> None:
  """Writes the gradient of a tile's scores."""
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
