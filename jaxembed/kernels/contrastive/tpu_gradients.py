"""The Pallas TPU kernel of masked log-sum-exp's gradients: body of one tile.

dS of a tile is made in VMEM in the operands' type and multiplied there by k, for the
gradient of q, which stays in VMEM in float32, and by q, for that of k, which passes
through once per group of rows. Neither product transposes anything: the second is
q.T @ dS, the transposed gradient.
"""

from typing import Any

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed.kernels.contrastive import tile, tpu_tile
from jaxembed.kernels.contrastive.tpu_tile import Static

# Terms of a sum that v6e's two matrix units add at once: what more of them would wait
# for, a sub-tile's 64 registers of partial sums, goes to the result instead.
_DEPTH = 512


def kernel(both: bool, static: Static, marks_ref: Any, first_ref: Any, scale_ref: Any,
           q_ref: Any, k_ref: Any, *refs: Any) -> None:
  """Adds a tile to the gradient of its rows and, with `both`, to that of its columns.

  refs: with both q.T [D,B] and the columns' gradient so far, [D,bn]; the vectors of
  both sides; results: of rows, [cores,strips*bm,D] in HBM, and of columns; scratch.
  """
  given, refs = tpu_tile.split(refs, 2 * both)
  sides, refs = tpu_tile.split(refs, static.structure.num_leaves)
  out, (dq_ref, ds_ref, *wide) = tpu_tile.split(refs, 1 + both)
  strip, place = static.strip(), static.place(first_ref)
  wide = tpu_tile.spread(static, sides, wide)
  dq_ref = dq_ref.at[strip]

  @pl.when(pl.program_id(1) == 0)
  def _():
    dq_ref[...] = jnp.zeros(dq_ref.shape, jnp.float32)

  if both:
    @pl.when(pl.program_id(2) == 0)
    def _():
      out[1][...] = given[1][...]

  def run(level):
    _dlogits(static, level, place, scale_ref, q_ref, k_ref, sides, wide,
             ds_ref)
    _add(static, dq_ref, ds_ref, tpu_tile.Matrix(k_ref, static.opts.dtype))
    if both:
      qt = tpu_tile.Matrix(given[0].at[:, strip], static.opts.dtype)
      _add(static, out[1], qt, ds_ref)

  tpu_tile.by_level(static, marks_ref, first_ref, run)

  @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
  def _():
    pltpu.sync_copy(dq_ref, out[0].at[pl.program_id(0), strip])


def _dlogits(static, level, place, scale_ref, q_ref, k_ref, sides, wide, ds_ref):
  """Writes the gradient of the tile's scores."""
  for rows, columns, s in tpu_tile.in_turn(static, q_ref, k_ref):
    for part, at in tpu_tile.lanes(columns):
      (row, row_ct), (col, col_ct) = tpu_tile.vectors(
          static, level, sides, wide, rows, at)
      z = tpu_tile.logits(static, level, place, s[:, part], scale_ref[0], row, col,
                          rows, at)
      p = tile.probabilities(z, tile.side_scale(scale_ref[0], row, col), static.opts,
                             row_ct, col_ct, jnp.exp2)
      ds_ref[rows, at] = p.astype(ds_ref.dtype)


def _add(static, out_ref, a, b):
  """out += a @ b, a sub-tile of the result after another."""
  for columns in tpu_tile.spans(b.shape[1], static.sub[1]):
    for rows in tpu_tile.spans(a.shape[0], static.sub[0]):
      for depth in tpu_tile.spans(a.shape[1], _DEPTH):
        out_ref[rows, columns] += tpu_tile.product(
            a[rows, depth], b[depth, columns], (1, 0))
