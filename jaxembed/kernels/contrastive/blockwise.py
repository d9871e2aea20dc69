"""Masked two-sided log-sum-exp in plain XLA, a tile of scores at a time.

Outer loop over column tiles, inner loop over row tiles. Row results are carried
through both, a column tile's results are complete when the inner loop ends and
are written once. The backward pass recomputes the scores of a tile, forms
dS in float32, casts it to the operands' type and feeds two matrix products.
Memory beyond inputs and outputs is one tile: no [B,N] array exists, and a ragged
last tile is a smaller tile, not a padded copy of the operands. Where even the
float32 accumulator of dq is too much, rows and columns get a pass each: a quarter
more products over value and gradient, and nothing kept in float32 but a tile.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.kernels.contrastive import tile
from jaxembed.kernels.contrastive.options import MaskVectors, Options, Sums

# Score tiles, float32. Accelerators want large matrix products; a CPU wants
# the tile to stay in its caches between the passes over it.
TILE_BYTES = {'cpu': 4 << 20}
TILE_BYTES_DEFAULT = 256 << 20
# A float32 dq larger than this, of narrower operands, is not kept.
ACCUMULATOR_BYTES = 512 << 20
_STEP = 1024  # tile sides are multiples of this


def tile_shape(b: int, n: int, tile_bytes: int) -> tuple[int, int]:
  """Rows and columns of a tile within `tile_bytes`: all rows if they fit."""
  area = max(tile_bytes // 4, 1)
  cols = _side(n, max(area // b, int(area**0.5)))
  return _side(b, area // cols), cols


def _side(size: int, want: int) -> int:
  step = min(_STEP, max(want, 1))
  return min(size, want // step * step)


def forward(q: jax.Array, k: jax.Array, scale: jax.Array,
            row: MaskVectors, col: MaskVectors, opts: Options
            ) -> tuple[Sums | None, Sums | None]:
  """Row sums and column sums (None where not asked).  q [B,D], k [N,D]."""
  b, n = q.shape[0], k.shape[0]
  acc = scale.dtype
  bm, bn = tile_shape(b, n, opts.tile_bytes)
  q = q.astype(opts.dtype)

  def columns(carry, j, bn):
    rows, cols = carry
    kj, cj = rows_at((k, col), j, bn)
    kj = kj.astype(opts.dtype)

    def cell(inner, i, bm):
      rows, part = inner
      qi, ri = rows_at((q, row), i, bm)
      r, c = tile.logits(
          scores(qi, kj, acc), scale, tile.as_column(ri), tile.as_row(cj), opts)
      if opts.rows:
        rows = put_rows(rows, i, tile.add(
            rows_at(rows, i, bm), r, 1, tile.side_scale(scale, ri), opts))
      if opts.cols:
        part = tile.add(part, c, 0, tile.side_scale(scale, cj), opts)
      return rows, part

    part = tile.start((bn,), acc) if opts.cols else None
    rows, part = sweep(b, bm, cell, (rows, part))
    return rows, put_rows(cols, j, part) if opts.cols else None

  rows = tile.start((b,), acc) if opts.rows else None
  cols = tile.start((n,), acc) if opts.cols else None
  rows, cols = sweep(n, bn, columns, (rows, cols))
  return (tile.finish(rows, tile.side_scale(scale, row), opts) if opts.rows else None,
          tile.finish(cols, tile.side_scale(scale, col), opts) if opts.cols else None)


def backward(q: jax.Array, k: jax.Array, scale: jax.Array,
             row: MaskVectors, col: MaskVectors, opts: Options,
             row_lse: jax.Array | None, row_ct: jax.Array | None,
             col_lse: jax.Array | None, col_ct: jax.Array | None, *,
             final: bool = False, dlogits_fn: Callable | None = None
             ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of sum(row_ct*row_lse) + sum(col_ct*col_lse).

  Returns dq [B,D], dk [N,D] and sum(q*dq), all float32; the sums may run over more
  pairs than are here. final: nothing will be added to dq and dk, so they may come
  in the types of q and k. `dlogits_fn` makes dS of a tile, see `_ds`, the default.
  """
  r_vec = vectors(row, row_lse, row_ct, scale, opts)
  c_vec = vectors(col, col_lse, col_ct, scale, opts)
  passes = _two_passes if final and too_large(q, scale) else _one_pass
  return passes(q, k, scale, (row, r_vec), (col, c_vec), opts, dlogits_fn or _ds)


def vectors(side: MaskVectors, lse: jax.Array | None, ct: jax.Array | None,
            scale: jax.Array, opts: Options) -> Any:
  """tile.backward_vectors of a direction, None if it is not in use."""
  if lse is None or ct is None:
    return None
  return tile.backward_vectors(lse, ct, tile.side_scale(scale, side), opts)


def too_large(x: jax.Array, scale: jax.Array) -> bool:
  """Whether a gradient of x is not to be kept in the type of sums until it is whole."""
  wide = scale.dtype.itemsize
  return x.dtype.itemsize < wide and x.size * wide > ACCUMULATOR_BYTES


def _one_pass(q, k, scale, rows, cols, opts, dlogits_fn):
  """`backward`, each tile of dS made once."""
  b, n, d = q.shape[0], k.shape[0], q.shape[1]
  acc = scale.dtype
  bm, bn = tile_shape(b, n, opts.tile_bytes)
  q = q.astype(opts.dtype)

  def columns(carry, j, bn):
    dq, dk = carry
    kj, col = rows_at((k, cols), j, bn)
    kj = kj.astype(opts.dtype)

    def cell(inner, i, bm):
      dq, dkj = inner
      qi, row = rows_at((q, rows), i, bm)
      p = dlogits_fn(qi, kj, scale, row, col, opts, (i, j))
      dqi = _dot(p, kj.astype(p.dtype), (1, 0), acc)
      dkj += _dot(p, qi.astype(p.dtype), (0, 0), acc)
      return put_rows(dq, i, rows_at(dq, i, bm) + dqi), dkj

    dq, dkj = sweep(b, bm, cell, (dq, jnp.zeros((bn, d), acc)))
    return dq, put_rows(dk, j, dkj)

  dq, dk = sweep(n, bn, columns, (jnp.zeros((b, d), acc), jnp.zeros((n, d), acc)))
  return dq, dk, jnp.sum(q.astype(acc) * dq)


def _two_passes(q, k, scale, rows, cols, opts, dlogits_fn):
  """`backward`, each tile of dS made for dq and again for dk; in q's and k's type."""
  (b, d), n = q.shape, k.shape[0]
  acc = scale.dtype
  bm, bn = tile_shape(b, n, opts.tile_bytes)

  def ds(i, bm, j, bn):
    """dS of a tile and its operands."""
    qi, row = rows_at((q, rows), i, bm)
    kj, col = rows_at((k, cols), j, bn)
    qi, kj = qi.astype(opts.dtype), kj.astype(opts.dtype)
    p = dlogits_fn(qi, kj, scale, row, col, opts, (i, j))
    return p, qi.astype(p.dtype), kj.astype(p.dtype)

  def for_rows(carry, i, bm):
    def cell(dqi, j, bn):
      p, _, kj = ds(i, bm, j, bn)
      return dqi + _dot(p, kj, (1, 0), acc)

    dq, total = carry
    dqi = sweep(n, bn, cell, jnp.zeros((bm, d), acc))
    qi = rows_at(q, i, bm).astype(opts.dtype).astype(acc)
    return put_rows(dq, i, dqi.astype(q.dtype)), total + jnp.sum(qi * dqi)

  def for_columns(dk, j, bn):
    def cell(dkj, i, bm):
      p, qi, _ = ds(i, bm, j, bn)
      return dkj + _dot(p, qi, (0, 0), acc)

    dkj = sweep(b, bm, cell, jnp.zeros((bn, d), acc))
    return put_rows(dk, j, dkj.astype(k.dtype))

  dq, total = sweep(b, bm, for_rows, (jnp.zeros_like(q), jnp.zeros((), acc)))
  return dq, sweep(n, bn, for_columns, jnp.zeros_like(k)), total


def _ds(q, k, scale, row, col, opts, at):
  """dS of one tile, [M,N], in the type its products want.

  row, col: a side's masks, and its tile.backward_vectors or None. at: where its rows
  and its columns begin.
  """
  del at
  (row, row_ct), (col, col_ct) = tile.as_column(row), tile.as_row(col)
  z = tile.logits(scores(q, k, scale.dtype), scale, row, col, opts)
  p = tile.probabilities(
      z, tile.side_scale(scale, row, col), opts, row_ct, col_ct)
  return p.astype(opts.dtype if opts.round_dlogits else p.dtype)


def scores(q: jax.Array, k: jax.Array, acc: Any) -> jax.Array:
  """Raw similarities, accumulated in `acc`.  [M,D], [N,D] -> [M,N]."""
  return _dot(q, k, (1, 1), acc)


def _dot(a, b, contract, acc):
  return lax.dot_general(
      a, b, (((contract[0],), (contract[1],)), ((), ())),
      precision=precision.of_dtype(a.dtype),
      preferred_element_type=acc)


def sweep(size: int, step: int, body: Callable, carry: Any) -> Any:
  """`carry = body(carry, start, step)` over [0,size); the last step may be short."""
  full, tail = divmod(size, step)
  if full > 1:
    carry = lax.fori_loop(0, full, lambda i, c: body(c, i * step, step), carry)
  elif full:
    carry = body(carry, 0, step)
  return body(carry, full * step, tail) if tail else carry


def rows_at(tree: Any, start: jax.Array | int, size: int) -> Any:
  """Rows [start, start+size) of every array."""
  return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), tree)


def put_rows(tree: Any, start: jax.Array | int, part: Any) -> Any:
  """`tree` with `part` written from row `start` on."""
  return jax.tree.map(
      lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, 0), tree, part)
