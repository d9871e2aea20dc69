"""The Pallas TPU kernel of masked log-sum-exp's sums: body of one tile.

tpu_call.py lays the tiles out; the sums are kept per lane (rows) and per sublane
(columns), so that nothing moves across them within a tile.
"""

import functools
from typing import Any

from jax.experimental import pallas as pl
import jax.numpy as jnp

from jaxembed.kernels.contrastive import tile, tpu_tile
from jaxembed.kernels.contrastive.tpu_tile import LANES, Static

_SUBLANES = 8


def kernel(static: Static, marks_ref: Any, first_ref: Any, scale_ref: Any,
           q_ref: Any, k_ref: Any, *refs: Any) -> None:
  """Adds a tile to the running sums of its rows, and writes those of its columns."""
  opts, j, strip = static.opts, pl.program_id(1), static.strip()
  sides, refs = tpu_tile.split(refs, static.structure.num_leaves)
  out, refs = tpu_tile.split(refs, 3 * (opts.rows + opts.cols))
  scratch, wide = tpu_tile.split(refs, 3 * opts.rows)
  wide = tpu_tile.spread(static, sides, wide)
  scratch = [ref.at[strip] for ref in scratch]
  if opts.rows:
    @pl.when(j == 0)
    def _():
      for ref, x in zip(scratch, tile.start((static.block[0], LANES), jnp.float32),
                        strict=True):
        ref[...] = x

  place = static.place(first_ref)

  def run(level):
    for columns, found in _columns(
        static, level, place, scale_ref, q_ref, k_ref, sides, wide, scratch):
      for ref, x in zip(out[-3:], found, strict=True):
        ref[:, columns] = x

  tpu_tile.by_level(static, marks_ref, first_ref, run)
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
        ref[:, strip] = x.T


def _columns(static, level, place, scale_ref, q_ref, k_ref, sides, wide, scratch):
  """Adds the tile to its rows' sums; yields (columns, sums) of 128 columns each."""
  opts = static.opts
  states = {}
  for rows, columns, s in tpu_tile.in_turn(static, q_ref, k_ref):
    parts = []
    for part, at in tpu_tile.lanes(columns):
      row, col = tpu_tile.vectors(static, level, sides, wide, rows, at)
      parts.append((tpu_tile.logits(
          static, level, place, s[:, part], scale_ref[0], row, col, rows, at), at,
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
        if rows.stop == static.block[0]:
          yield at, _across_sublanes(states.pop(at.start), opts)


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
