"""Reference implementation of masked log-sum-exp, with every matrix written out.

The specification in code: [B,N] scores, masks and probabilities all exist.
"""

import jax
import jax.numpy as jnp

from jaxembed.kernels.contrastive.options import MaskVectors, Options, Sums


def _round(x, scale, opts: Options):
  """x with the values of the operands' type, in the accumulation type."""
  return x.astype(opts.dtype).astype(scale.dtype)


def _scores(q, k):
  """Raw similarities.  [B,D], [N,D] -> [B,N]."""
  return jnp.einsum('BD,ND->BN', q, k, precision=jax.lax.Precision.HIGHEST)


def _logits(s, scale, row: MaskVectors, col: MaskVectors, opts: Options):
  """Logits and masks of both directions: zr, zc, keep_r, keep_c, all [B,N]."""
  keep = jnp.ones(s.shape, bool)
  for a, b in zip(row.ids, col.ids, strict=True):
    keep &= a[:, None] != b[None, :]
  own = None
  if row.owner is not None and col.owner is not None:
    own = row.owner[:, None] == col.owner[None, :]
  meet = own
  if row.group is not None and col.group is not None:
    same = row.group[:, None] == col.group[None, :]
    meet = same if own is None else same | own
  if meet is not None:
    keep &= meet
  keep_r = keep_c = keep
  if row.threshold is not None:  # a NaN is kept, and seen
    keep_r = keep & ~(s > row.threshold[:, None])
  if col.threshold is not None:
    keep_c = keep & ~(s > col.threshold[None, :])
  if row.guide is not None:
    guided = _scores(row.guide, col.guide)
    if row.guide_limit is not None:
      keep_r &= ~(guided > row.guide_limit[:, None])
    if col.guide_limit is not None:
      keep_c &= ~(guided > col.guide_limit[None, :])
  alpha_own, alpha = opts.hardness
  of_row, of_col = _scales(scale, row, col)
  hard = (alpha if own is None else jnp.where(own, alpha_own, alpha)) * s
  zr, zc = of_row * s + hard, of_col * s + hard
  if col.bias is not None:
    zr, keep_r = zr + col.bias[None, :], keep_r & (col.bias != -jnp.inf)[None, :]
  if row.bias is not None:
    zc, keep_c = zc + row.bias[:, None], keep_c & (row.bias != -jnp.inf)[:, None]
  return zr, zc, keep_r, keep_c


def _scales(scale, row: MaskVectors, col: MaskVectors):
  """The scale of each row's and of each column's logits, to broadcast."""
  return (scale if row.scale is None else row.scale[:, None],
          scale if col.scale is None else col.scale[None, :])


def _sums(z, keep, axis) -> Sums:
  z = jnp.where(keep, z, -jnp.inf)
  lse = jax.nn.logsumexp(z, axis)
  return Sums(lse, keep.sum(axis, dtype=jnp.int32),
              z.max(axis, initial=-jnp.inf))


def forward(q: jax.Array, k: jax.Array, scale: jax.Array,
            row: MaskVectors, col: MaskVectors, opts: Options
            ) -> tuple[Sums | None, Sums | None]:
  """Row sums and column sums (None where not asked).  q [B,D], k [N,D]."""
  q, k = _round(q, scale, opts), _round(k, scale, opts)
  zr, zc, keep_r, keep_c = _logits(_scores(q, k), scale, row, col, opts)
  return (_sums(zr, keep_r, 1) if opts.rows else None,
          _sums(zc, keep_c, 0) if opts.cols else None)


def backward(q: jax.Array, k: jax.Array, scale: jax.Array,
             row: MaskVectors, col: MaskVectors, opts: Options,
             row_lse: jax.Array | None, row_ct: jax.Array | None,
             col_lse: jax.Array | None, col_ct: jax.Array | None, *,
             final: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of sum(row_ct*row_lse) + sum(col_ct*col_lse): see blockwise.backward."""
  del final  # float32 is what there is
  q, k = _round(q, scale, opts), _round(k, scale, opts)
  s = _scores(q, k)
  zr, zc, keep_r, keep_c = _logits(s, scale, row, col, opts)
  of_row, of_col = _scales(scale, row, col)
  ds = jnp.zeros_like(s)
  if row_lse is not None and row_ct is not None:
    p = jnp.exp(jnp.where(keep_r, zr - row_lse[:, None], -jnp.inf))
    ds += of_row * row_ct[:, None] * p
  if col_lse is not None and col_ct is not None:
    p = jnp.exp(jnp.where(keep_c, zc - col_lse[None, :], -jnp.inf))
    ds += of_col * col_ct[None, :] * p
  exact = jax.lax.Precision.HIGHEST
  dq = jnp.einsum('BN,ND->BD', ds, k, precision=exact)
  dk = jnp.einsum('BN,BD->ND', ds, q, precision=exact)
  return dq, dk, jnp.sum(q * dq)
