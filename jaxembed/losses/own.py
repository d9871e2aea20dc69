"""Log-sum-exp over a row's own negatives: C products, no kernel needed."""

from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, precision
from jaxembed.kernels import contrastive
from jaxembed.losses import masks


def sums(query, passage, lay: masks.Layout, limit, scale, cfg: config.LossConfig,
         axes, mode) -> dict[str, contrastive.Sums]:
  """The term qd, `Sums` of [Q] arrays: each passage counts for its owner alone.

  Passages may be ragged, in any order and on any device. scale: [] or [Q].
  """
  queries = lay.positive.shape[0]
  owner = lay.col.owner
  at = jnp.clip(owner, 0, queries - 1)
  theirs = contrastive.take(
      query, contrastive.split_rows(at, axes), axes, mode)
  s = masks.replicate(jnp.einsum(  # [C]
      'CE,CE->C', theirs, passage, precision=precision.of_dtype(cfg.dtype),
      preferred_element_type=jnp.float32))
  keep = owner >= 0
  for a, b in zip(lay.row.ids, lay.col.ids, strict=True):
    keep &= a[at] != b
  if limit is not None:
    keep &= s <= limit[at]
  alpha = 0.0 if cfg.hardness_on == 'shared' else cfg.hardness
  z = s * (scale[at] if scale.ndim else scale) + alpha * stop_gradient(s)
  to = jnp.where(keep, owner, queries)  # out of range: dropped
  top = jnp.full((queries,), -jnp.inf, s.dtype).at[to].max(
      stop_gradient(z), mode='drop')
  gap = jnp.where(keep, z - jnp.where(jnp.isfinite(top), top, 0)[at], 0)
  total = jnp.zeros((queries,), s.dtype).at[to].add(jnp.exp(gap), mode='drop')
  kept = jnp.zeros((queries,), jnp.int32).at[to].add(1, mode='drop')
  some = kept > 0
  lse = jnp.where(some, jnp.where(some, top, 0) + jnp.log(
      jnp.where(some, total, 1)), -jnp.inf)
  return {'qd': contrastive.Sums(lse, kept, top)}
