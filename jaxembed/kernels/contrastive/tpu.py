"""Masked two-sided log-sum-exp as Pallas TPU kernels.

  sums       one matrix product per tile with an epilogue on the scores while they are
             in VMEM (tpu_sums.py). A group of rows stays, k streams past it. Row
             statistics live in scratch, one per lane ([rows,128]: column chunks of 128
             are folded by element-wise max and add), and are reduced across lanes once,
             at the last columns. Column statistics of a tile are complete for its rows
             and go out as [row tiles,1,N] partials, which XLA merges: nothing goes from
             one group of rows to the next, so they may run on two cores, and the order
             of sums is fixed.
  gradients  three products per tile: the scores, and dS, which never leaves VMEM, with
             k and with q (tpu_gradients.py). A call works on one group of rows, whose
             gradient stays in VMEM; k and the float32 gradient of the columns pass
             once, and a loop of XLA takes the groups in order.

A tile that holds no pair for ids, owners or groups to mask (flags.py; a level per tile,
prefetched) takes a way without these masks. Logits are to base 2 inside the kernels.

Mask vectors arrive lane-major [1,B] (as [B,1] each would occupy 512 bytes a row in
HBM); those of rows are spread over the lanes once per group, [rows,128] in scratch.
D is not blocked: both kernels hold whole vectors, so one product decides on which side
of a threshold a pair is.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed.kernels import dispatch
from jaxembed.kernels.contrastive import (
    blockwise,
    tile,
    tpu_call,
    tpu_gradients,
    tpu_pairs,
    tpu_sums,
    tpu_tile,
)
from jaxembed.kernels.contrastive.options import MaskVectors, Options, Sums

# Column statistics of tiles of rows that wait in HBM to be merged.
_PARTIAL_BYTES = 64 << 20
_STATE = (jnp.float32, jnp.float32, jnp.int32)  # maximum, sum, dropped


def forward(q: jax.Array, k: jax.Array, scale: jax.Array,
            row: MaskVectors, col: MaskVectors, opts: Options
            ) -> tuple[Sums | None, Sums | None]:
  """Row sums and column sums (None where not asked).  q [B,D], k [N,D]."""
  _check(q, opts)
  (b, d), n = q.shape, k.shape[0]
  q, k = q.astype(opts.dtype), k.astype(opts.dtype)
  cut = tpu_call.tiling(b, n, d, k.dtype.itemsize, len(jax.tree.leaves(row)),
                        gradients=False)
  marks = tpu_call.marks(row, col, (b, n), cut.block, opts)
  # So many groups of rows per call that their column partials stay small.
  step = max(_PARTIAL_BYTES // (12 * n * cut.strips), 1) if opts.cols else cut.groups
  words = [tpu_pairs.of(x, interpret=opts.interpret) for x in (q, k)]
  run = functools.partial(_sums, *words, scale, row, col, opts, cut, marks, (b, n))

  def some_groups(carry, i, count):
    rows, cols = carry
    r, c = run(i, count)
    if c is not None:
      top, total, kept = (jnp.concatenate([x[None], y])
                          for x, y in zip(cols, c, strict=True))
      cols = tile.merge((top, total, kept), opts)
    rows = blockwise.put_rows(rows, i * cut.group_rows, r) if opts.rows else None
    return rows, cols

  rows = tile.start((cut.tiles[0] * cut.block[0],), jnp.float32) if opts.rows else None
  cols = tile.start((n,), jnp.float32) if opts.cols else None
  rows, cols = blockwise.sweep(cut.groups, min(step, cut.groups), some_groups,
                               (rows, cols))
  return (tile.finish(tuple(x[:b] for x in rows), tile.side_scale(scale, row), opts)
          if rows else None,
          tile.finish(cols, tile.side_scale(scale, col), opts) if cols else None)


def _sums(q, k, scale, row, col, opts, cut, marks, sizes, first, groups):
  """(maximum, sum, kept) of the rows of some groups, each [rows], and of columns, each
  [row tiles,N].
  """
  (bm, bn), d, n = cut.block, q.shape[1], sizes[1]
  rows = groups * cut.group_rows
  at_part = pl.BlockSpec((None, 1, bn), lambda o, m, s, *_: (o * cut.strips + s, 0, m))
  results = []
  for use, shape, spec in (
      (opts.rows, (1, rows), pl.BlockSpec((1, cut.group_rows),
                                          lambda o, m, s, *_: (0, o))),
      (opts.cols, (groups * cut.strips, 1, n), at_part)):
    if use:
      results += [(jax.ShapeDtypeStruct(shape, t), spec) for t in _STATE]
  out = tpu_call.call(
      tpu_sums.kernel, 'contrastive_sums', cut, sizes,
      [tpu_call.operand(q, (cut.group_rows, d), lambda o, m, s, _, first: (
          first[0] + o, 0)),
       tpu_call.operand(k, (bn, d), lambda o, m, s, *_: (m, 0))],
      scale, (row, col), opts, marks, first, results=results, by_rows=True,
      scratch=[pltpu.VMEM((cut.group_rows, tpu_tile.LANES), t)
               for t in _STATE * opts.rows],
      products=1, moved=cut.moved(d, jnp.dtype(opts.dtype).itemsize), groups=groups)
  unit = math.log(2)  # of the maxima, back to base e
  row_sums = col_sums = None
  if opts.rows:
    top, total, dropped = (x[0] for x in out[:3])
    row_sums = top * unit, total, cut.tiles[1] * bn - dropped
  if opts.cols:
    top, total, dropped = (x[:, 0] for x in out[-3:])
    col_sums = top * unit, total, bm - dropped
  return row_sums, col_sums


def backward(q: jax.Array, k: jax.Array, scale: jax.Array,
             row: MaskVectors, col: MaskVectors, opts: Options,
             row_lse: jax.Array | None, row_ct: jax.Array | None,
             col_lse: jax.Array | None, col_ct: jax.Array | None, *,
             final: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
  """As blockwise.backward, with its rule of when each side has a pass of its own."""
  _check(q, opts)
  rows = row, blockwise.vectors(row, row_lse, row_ct, scale, opts)
  cols = col, blockwise.vectors(col, col_lse, col_ct, scale, opts)
  if not (final and blockwise.too_large(q, scale)):
    return _gradients(q, k, scale, rows, cols, opts, jnp.float32, both=True)
  dq, _, total = _gradients(q, k, scale, rows, cols, opts, q.dtype, both=False)
  swapped = dataclasses.replace(opts, rows=opts.cols, cols=opts.rows)
  dk, _, _ = _gradients(k, q, scale, cols, rows, swapped, k.dtype, both=False)
  return dq, dk, total


def _gradients(q, k, scale, rows, cols, opts, dtype, *, both) -> tuple[Any, Any, Any]:
  """dq [B,D], dk [N,D] (None without `both`), sum(q*dq). dtype: of both gradients.

  rows, cols: a side's masks, and its tile.backward_vectors or None.
  """
  (b, d), n, f32 = q.shape, k.shape[0], jnp.float32
  q, k = q.astype(opts.dtype), k.astype(opts.dtype)
  cut = tpu_call.tiling(b, n, d, q.dtype.itemsize, len(jax.tree.leaves(rows)),
                        gradients=True)
  marks = tpu_call.marks(rows[0], cols[0], (b, n), cut.block, opts)
  (bm, bn), per_core = cut.block, cut.tiles[1] // cut.cores
  # Nothing undefined may be multiplied: rows that fill up the last tile are 0.
  q, rows = _filled((q, rows), cut.tiles[0] * bm)
  k, cols = _filled((k, cols), cut.tiles[1] * bn)
  once = {'pipeline_mode': pl.Buffered(1)}  # one group, so nothing follows it
  words = [tpu_pairs.of(x, interpret=opts.interpret)
           for x in ((q, k, q.T) if both else (q, k))]
  operands = [
      tpu_call.operand(words[0], (cut.group_rows, d),
                       lambda o, m, s, _, first: (first[0], 0), **once),
      tpu_call.operand(words[1], (bn, d), lambda o, m, s, *_: (o * per_core + m, 0))]
  at_dk = pl.BlockSpec((d, bn), lambda o, m, s, *_: (0, o * per_core + m))
  of_rows = (jax.ShapeDtypeStruct((cut.cores, cut.group_rows, d), f32),
             pl.BlockSpec(memory_space=pl.ANY))
  of_cols = jax.ShapeDtypeStruct((d, k.shape[0]), f32), at_dk
  if both:
    operands.append(tpu_call.operand(
        words[2], (d, cut.group_rows), lambda o, m, s, _, first: (0, first[0]), **once))

  def group(carry, i, _):
    dq, dk, total = carry
    more = [(dk, at_dk)] if both else []
    part, *dk = tpu_call.call(
        functools.partial(tpu_gradients.kernel, both), 'contrastive_gradients', cut,
        (b, n), [*operands, *more], scale, (rows, cols), opts, marks,
        i, results=[of_rows, of_cols] if both else [of_rows],
        scratch=[pltpu.VMEM((cut.group_rows, d), f32), pltpu.VMEM((bm, bn), q.dtype)],
        products=2 + both, moved=cut.moved(d, q.dtype.itemsize, 1 + both), groups=1,
        by_rows=False, aliases={3: 1} if both else None)
    part = part.sum(0)
    qi = blockwise.rows_at(q, i * cut.group_rows, cut.group_rows)
    dq = blockwise.put_rows(dq, i * cut.group_rows, part.astype(dq.dtype))
    return dq, dk[0] if both else None, total + jnp.sum(qi.astype(f32) * part)

  dq, dk, total = blockwise.sweep(cut.groups, 1, group, (
      jnp.zeros(q.shape, dtype),
      jnp.zeros((d, k.shape[0]), f32) if both else None, jnp.zeros((), f32)))
  return dq[:b], dk.T[:n].astype(dtype) if both else None, total


def _filled(tree: Any, size: int) -> Any:
  return jax.tree.map(lambda x: jnp.pad(
      x, [(0, size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)), tree)


def _check(q, opts: Options):
  if not opts.interpret and dispatch.platform() != 'tpu':
    raise dispatch.Unsupported(
        "impl='tpu' needs a TPU and this computation runs on "
        f"{dispatch.platform()}; use impl='auto' or 'blockwise'")
  if opts.dtype == 'float64':
    raise dispatch.Unsupported(
        "impl='tpu' computes in float32 at most; use impl='blockwise' for float64")
