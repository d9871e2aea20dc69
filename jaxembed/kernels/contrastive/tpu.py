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
  ds    grid over both, no state. Writes dS of a super-tile in the operands' type;
        `blockwise.backward` multiplies it with k and q by XLA's own products.

Mask vectors arrive lane-major [1,B] (as [B,1] each would occupy 512 bytes a row in
HBM) and row vectors are transposed in the kernel. D is not blocked: both kernels hold
whole vectors, so one product decides on which side of a threshold a pair is.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.kernels import dispatch
from jaxembed.kernels.contrastive import blockwise, tile
from jaxembed.kernels.contrastive.options import MASKED, MaskVectors, Options, Sums

_LANES = 128
# Half of the smallest VMEM (v5p: 64 MiB) is for the blocks we count; the compiler
# keeps temporaries of its own, up to the limit.
_VMEM_BLOCKS = 40 << 20
_VMEM_LIMIT = 56 << 20
# Column statistics of row blocks that wait in HBM to be merged.
_PARTIAL_BYTES = 64 << 20
_STATE = (jnp.float32, jnp.float32, jnp.int32)  # maximum, sum, kept


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
  q = q.astype(opts.dtype)
  bm, bn = blocks(b, n, d, k.dtype.itemsize)
  # So many row blocks per call that their column partials stay small.
  step = max(_PARTIAL_BYTES // (12 * n), 1) * bm if opts.cols else b

  def some_rows(carry, i, size):
    rows, cols = carry
    qi, ri = (blockwise.rows_at(x, i, size) for x in (q, row))
    r, c = _sums(qi, k, scale, ri, col, opts, bm, bn)
    if c is not None:
      cols = _merge(*(jnp.concatenate([x[None], y]) for x, y in
                      zip(cols, c, strict=True)))
    return blockwise.put_rows(rows, i, r) if opts.rows else None, cols

  rows, cols = blockwise.start(b, n, scale, row, col, opts)
  rows, cols = blockwise.sweep(b, min(step, b), some_rows, (rows, cols))
  return (tile.finish(rows, opts) if opts.rows else None,
          tile.finish(cols, opts) if opts.cols else None)


def _sums(q, k, scale, row, col, opts, bm, bn):
  """(maximum, sum, kept) of rows, each [B], and of columns, each [row blocks,N]."""
  (b, d), n = q.shape, k.shape[0]
  grid = pl.cdiv(b, bm), pl.cdiv(n, bn)
  at_row = pl.BlockSpec((1, bm), lambda i, j: (0, i))
  at_part = pl.BlockSpec((None, 1, bn), lambda i, j: (i, 0, j))
  shapes, specs, scratch = [], [], []
  for use, shape, spec in ((opts.rows, (1, b), at_row),
                           (opts.cols, (grid[0], 1, n), at_part)):
    if use:
      shapes += [jax.ShapeDtypeStruct(shape, t) for t in _STATE]
      specs += [spec] * 3
  if opts.rows:
    scratch = [pltpu.VMEM((bm, _LANES), t) for t in _STATE]
  sides, in_specs = _sides(row, col, bm, bn)
  out = pl.pallas_call(
      functools.partial(_sums_kernel, jax.tree.structure((row, col)), opts, b, n),
      grid=grid,
      in_specs=[_SCALAR, *_operands(bm, bn, d), *in_specs],
      out_specs=specs, out_shape=shapes, scratch_shapes=scratch,
      compiler_params=_params('parallel', 'arbitrary'),
      cost_estimate=_cost(q, k, 0), interpret=_interpreter(opts),
      name='contrastive_sums',
  )(scale.reshape(1), q, k, *sides)
  return (tuple(x[0] for x in out[:3]) if opts.rows else None,
          tuple(x[:, 0] for x in out[-3:]) if opts.cols else None)


def backward(q: jax.Array, k: jax.Array, scale: jax.Array,
             row: MaskVectors, col: MaskVectors, opts: Options,
             row_lse: jax.Array | None, row_ct: jax.Array | None,
             col_lse: jax.Array | None, col_ct: jax.Array | None, *,
             final: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
  """blockwise.backward with dS from the kernel."""
  _check(q, opts)
  return blockwise.backward(q, k, scale, row, col, opts, row_lse, row_ct,
                            col_lse, col_ct, final=final, dlogits_fn=_ds)


def _ds(q, k, scale, row, col, opts):
  """dS of a super-tile, [B,N], in the operands' type."""
  (b, d), n = q.shape, k.shape[0]
  bm, bn = blocks(b, n, d, q.dtype.itemsize)
  sides, in_specs = _sides(row, col, bm, bn)
  dtype = q.dtype if opts.round_dlogits else jnp.dtype(jnp.float32)
  return pl.pallas_call(
      functools.partial(_ds_kernel, jax.tree.structure((row, col)), opts),
      grid=(pl.cdiv(b, bm), pl.cdiv(n, bn)),
      in_specs=[_SCALAR, *_operands(bm, bn, d), *in_specs],
      out_specs=pl.BlockSpec((bm, bn), lambda i, j: (i, j)),
      out_shape=jax.ShapeDtypeStruct((b, n), dtype),
      compiler_params=_params('parallel', 'parallel'),
      cost_estimate=_cost(q, k, b * n * dtype.itemsize),
      interpret=_interpreter(opts), name='contrastive_ds',
  )(scale.reshape(1), q, k, *sides)


# --- Kernels -----------------------------------------------------------------


def _open(structure, refs):
  """The (row, col) trees of mask vectors in this tile: [bm,1] and [1,bn]."""
  row, col = jax.tree.unflatten(structure, [ref[...] for ref in refs])
  return jax.tree.map(lambda x: x.T, row), col


def _sums_kernel(structure, opts, b, n, scale_ref, q_ref, k_ref, *refs):
  sides, refs = refs[:structure.num_leaves], refs[structure.num_leaves:]
  scale = scale_ref[0]
  i, j = pl.program_id(0), pl.program_id(1)
  s = _dot(q_ref[...], k_ref[...].astype(opts.dtype))
  row, col = _open(structure, sides)
  rows, cols = tile.logits(s, scale, row, col, opts)
  bm, bn = s.shape
  if opts.rows:
    # Blocks beyond the arrays hold whatever was there, NaNs included.
    out, scratch = refs[:3], refs[-3:]
    rows = _within(rows, n, j * bn, 1) if n % bn else rows

    @pl.when(j == 0)
    def _():
      for ref, x in zip(scratch, tile.start(
          (bm, _LANES), jnp.float32, tile.side_scale(scale, row), opts), strict=True):
        ref[...] = x

    for ref, x in zip(scratch, _fold(scratch, rows, opts), strict=True):
      ref[...] = x

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
      top, total, kept = (ref[...] for ref in scratch)
      best = top.max(1, keepdims=True)
      total = (total * jnp.exp(top - best)).sum(1, keepdims=True)
      kept = kept.sum(1, keepdims=True, dtype=jnp.int32)
      for ref, x in zip(out, (best, total, kept), strict=True):
        ref[...] = x.T
  if opts.cols:
    out = refs[3:6] if opts.rows else refs[:3]
    z, keep = _within(cols, b, i * bm, 0) if b % bm else cols
    if opts.bounded:
      top = jnp.broadcast_to(
          tile.shift(tile.side_scale(scale, col), opts), (1, bn))
    else:
      top = jnp.maximum(z.max(0, keepdims=True), tile.FLOOR)
    kept = (jnp.full((1, bn), bm, jnp.int32) if keep is None
            else keep.astype(jnp.int32).sum(0, keepdims=True, dtype=jnp.int32))
    total = jnp.exp(z - top).sum(0, keepdims=True)
    for ref, x in zip(out, (top, total, kept), strict=True):
      ref[...] = x


def _fold(scratch, direction, opts):
  """Lane-private running (maximum, sum, count) with one more tile."""
  top, total, kept = (ref[...] for ref in scratch)
  z, keep = direction
  chunks = [slice(c, c + _LANES) for c in range(0, z.shape[1], _LANES)]
  new = top
  if not opts.bounded:
    for c in chunks:
      new = jnp.maximum(new, z[:, c])
    total = total * jnp.exp(top - new)
  for c in chunks:
    total += jnp.exp(z[:, c] - new)
    kept += 1 if keep is None else keep[:, c].astype(jnp.int32)
  return new, total, kept


def _within(direction, size, start, axis):
  """The direction with pairs beyond the array masked."""
  z, keep = direction
  inside = start + lax.broadcasted_iota(jnp.int32, z.shape, axis) < size
  return jnp.where(inside, z, MASKED), inside if keep is None else keep & inside


def _ds_kernel(structure, opts, scale_ref, q_ref, k_ref, *refs):
  *sides, out_ref = refs
  (row, row_ct), (col, col_ct) = _open(structure, sides)
  z = tile.logits(_dot(q_ref[...], k_ref[...]), scale_ref[0], row, col, opts)
  scale = tile.side_scale(scale_ref[0], row, col)
  p = tile.probabilities(z, scale, opts, row_ct, col_ct)
  out_ref[...] = p.astype(out_ref.dtype)


def _dot(q, k):
  return lax.dot_general(
      q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32,
      precision=precision.of_dtype(q.dtype))


# --- Around them -------------------------------------------------------------

_SCALAR = pl.BlockSpec(memory_space=pltpu.SMEM)


def _operands(bm, bn, d):
  return (pl.BlockSpec((bm, d), lambda i, j: (i, 0)),
          pl.BlockSpec((bn, d), lambda i, j: (j, 0)))


def _sides(row, col, bm, bn):
  """Vectors of both sides, lane-major, and their block specs."""
  at_row = pl.BlockSpec((1, bm), lambda i, j: (0, i))
  at_col = pl.BlockSpec((1, bn), lambda i, j: (0, j))
  row, col = jax.tree.leaves(row), jax.tree.leaves(col)
  return ([x[None, :] for x in (*row, *col)],
          [at_row] * len(row) + [at_col] * len(col))


def _merge(top, total, kept):
  """Column partials of all row blocks, each [row blocks, N]."""
  best = top.max(0)
  return best, (total * jnp.exp(top - best)).sum(0), kept.sum(0, dtype=jnp.int32)


def _params(*semantics):
  return pltpu.CompilerParams(
      dimension_semantics=semantics, vmem_limit_bytes=_VMEM_LIMIT)


def _cost(q, k, written):
  (b, d), n = q.shape, k.shape[0]
  return pl.CostEstimate(
      flops=2 * b * n * d, transcendentals=b * n,
      bytes_accessed=(b + n) * d * q.dtype.itemsize + written)


def _interpreter(opts):
  return pltpu.InterpretParams() if opts.interpret else False


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
