"""Log-sum-exp over each row's own passages (its positive and hard negatives)."""

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config
from jaxembed.kernels import contrastive
from jaxembed.losses import masks, vectors


def similarities(query: jax.Array, passage: jax.Array, lay: masks.Layout,
                 cfg: config.LossConfig, axes: tuple[str, ...], mode: str
                 ) -> tuple[jax.Array, jax.Array]:
  """(of each passage and its owner's query [C], the owner's row in range [C]).

  Passages may be ragged, in any order and on any device.
  """
  theirs = contrastive.take(query, lay.asked_by, axes, mode)
  return vectors.products(theirs, passage, cfg.operands), lay.asked_by


def log_sum_exp(z: jax.Array, keep: jax.Array, at: jax.Array, queries: int
                ) -> contrastive.Sums:
  """`Sums` [Q] of the logits z [C] that are kept, each in the row `at` [C]."""
  _, log_total, shift, kept, top = _shifted(z, keep, at, queries)
  return contrastive.Sums(jnp.where(kept > 0, shift + log_total, -jnp.inf), kept, top)


def log_softmax(z: jax.Array, keep: jax.Array, at: jax.Array, queries: int
                ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(Log-probabilities [C] of the logits z that are kept, 0 elsewhere; how many a row
  keeps [Q]; their largest [Q]). Exact for logits of any size."""
  gap, log_total, _, kept, top = _shifted(z, keep, at, queries)
  return jnp.where(keep, gap - log_total[at], 0), kept, top


def _shifted(z, keep, at, queries):
  """Logits [C] less their row's shift, the log of their exponentials' sum [Q], the
  shift, the number kept and the largest logit [Q]."""
  to = jnp.where(keep, at, queries)  # out of range: dropped
  top = jnp.full((queries,), -jnp.inf, z.dtype).at[to].max(
      stop_gradient(z), mode='drop')
  shift = jnp.where(jnp.isfinite(top), top, 0)
  gap = jnp.where(keep, z - shift[at], 0)
  total = jnp.zeros((queries,), z.dtype).at[to].add(jnp.exp(gap), mode='drop')
  kept = jnp.zeros((queries,), jnp.int32).at[to].add(1, mode='drop')
  return gap, jnp.log(jnp.where(kept > 0, total, 1)), shift, kept, top


def kept(s: jax.Array, at: jax.Array, lay: masks.Layout, limit: jax.Array | None,
         axes: tuple[str, ...], mode: str) -> jax.Array:
  """[C] bool: passages that are negatives of their own row, by ids, the limit [Q] of
  their similarities s [C], and the guide."""
  keep = lay.owner >= 0
  for a, b in zip(lay.row.ids, lay.col.ids, strict=True):
    keep &= a[at] != b
  if limit is not None:
    keep &= ~(s > limit[at])  # a NaN is kept, and seen
  if (lay.row.guide is not None and lay.col.guide is not None
      and lay.row.guide_limit is not None):
    theirs = contrastive.take(lay.row.guide, at, axes, mode)
    cosine = vectors.products(theirs, lay.col.guide)
    keep &= ~(cosine > lay.row.guide_limit[at])
  return keep


def sums(query: jax.Array, passage: jax.Array, lay: masks.Layout,
         limit: jax.Array | None, scale: jax.Array, cfg: config.LossConfig,
         axes: tuple[str, ...], mode: str) -> dict[str, contrastive.Sums]:
  """The term qd, `Sums` of [Q] arrays: each passage counts for its owner alone.

  scale: [] or [Q].
  """
  s, at = similarities(query, passage, lay, cfg, axes, mode)
  keep = kept(s, at, lay, limit, axes, mode)
  alpha = 0.0 if cfg.hardness_on == 'shared' else cfg.hardness
  z = s * (scale[at] if scale.ndim else scale) + alpha * stop_gradient(s)
  return {'qd': log_sum_exp(z, keep, at, lay.positive.shape[0])}
