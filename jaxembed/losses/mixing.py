"""Online mixing of hard negatives: harder ones, made of a row's own.

  pair:  h = unit(lam n_a + (1 - lam) n_b),  lam ~ Beta(2, 2), a and b two of the row's
  list:  h = unit(sum_m c_m n_m),            c = softmax_m(s(q, n_m) / temperature)

Negatives that the masks or margins leave out are not mixed, as two false ones would
make a falser one. What is made counts for its own row alone. Rows with fewer than two
negatives get none.

Zhao et al. 2025 (KaLM-Embedding-V2).
"""

import jax
import jax.numpy as jnp

from jaxembed import config, mesh, types
from jaxembed.kernels import contrastive
from jaxembed.losses import hard_negatives, masks, vectors


def sums(query: jax.Array, passage: jax.Array, lay: masks.Layout,
         limit: jax.Array | None, scale: jax.Array, cfg: config.LossConfig,
         axes: tuple[str, ...], mode: str, pairing: types.Pairing
         ) -> tuple[contrastive.Sums, jax.Array] | None:
  """(`Sums` [Q] of the mixed negatives, their similarities [Q,N], NaN where a row has
  none); None where cfg's options ask for none.

  Raises ValueError if pairs are asked for and pairing.seed is None.
  """
  pairs, whole = cfg.option('mix_pairs'), cfg.option('mix_list')
  if not pairs and not whole:
    return None
  s, at = hard_negatives.similarities(query, passage, lay, cfg, axes, mode)
  keep = hard_negatives.kept(s, at, lay, limit, axes, mode)
  count = jnp.zeros((lay.positive.size,), jnp.int32).at[at].add(keep.astype(jnp.int32))
  found = []
  if pairs:
    if pairing.seed is None:
      raise ValueError('the option mix_pairs draws at random, and pairing.seed is '
                       'None; give the step a seed: pairing.seed, [] uint32')
    key = jax.random.key(mesh.replicate(pairing.seed))
    for part in jax.random.split(key, pairs):
      found.append(_pair(part, passage, at, keep, count, axes, mode))
  if whole:
    z = s * (scale[at] if scale.ndim else scale)
    log_c, *_ = hard_negatives.log_softmax(z, keep, at, count.size)
    found.append(_sums_of_rows(jnp.where(keep, jnp.exp(log_c), 0), passage, at,
                               query, axes, mode))
  mixed = jnp.stack(
      [vectors.products(query, vectors.unit(h), cfg.operands) for h in found], 1)
  has = (count > 1)[:, None]
  z = jnp.where(has, mixed * jnp.reshape(scale, (-1, 1)), -jnp.inf)
  top = z.max(1)
  lse = jnp.where(has[:, 0], jax.nn.logsumexp(
      jnp.where(has, z, 0), 1), -jnp.inf)
  return contrastive.Sums(lse, jnp.where(has[:, 0], z.shape[1], 0), top), jnp.where(
      has, mixed, jnp.nan)


def _pair(key, passage, at, keep, count, axes, mode):
  """[Q,E]: of two different ones of each row's kept passages, drawn at random, a mean
  at random weights."""
  draw, weigh = jax.random.split(key)
  order = jnp.lexsort((jax.random.uniform(draw, at.shape),
                       jnp.where(keep, at, count.size)))
  first = jnp.cumsum(count) - count
  a, b = (contrastive.take(passage, order[jnp.minimum(first + i, at.size - 1)], axes,
                           mode) for i in (0, 1))
  share = contrastive.split_rows(
      jax.random.beta(weigh, 2.0, 2.0, count.shape)[:, None], axes)
  return share * a + (1 - share) * b


def _sums_of_rows(weight, passage, at, like, axes, mode):
  """[Q,E], the sum of each row's passages by their weights [C]: the transpose of how
  passages find their rows' queries."""
  _, back = jax.vjp(
      lambda x: contrastive.take(x, at, axes, mode), jnp.zeros_like(like))
  return back(contrastive.split_rows(weight[:, None], axes) * passage)[0]
