"""CoSENT and AnglE: the order of scored pairs.

  loss = log(1 + sum_(i,j): score_i < score_j  exp(z_i - z_j))

over all pairs (a row's query and a passage of it) of the batch that have scores, those
of a source among themselves: scores of different data sets have no common scale. z is
the pair's cosine over the temperature or, for `angle`, the size of the sum of its angle
differences in complex space, as sentence-transformers' pairwise_angle_sim has it.

Su 2022, Huang et al. 2024 (CoSENT); Li & Li 2023 (AnglE).
"""

import functools

import jax
import jax.numpy as jnp

from jaxembed import config
from jaxembed.losses import hard_negatives, ordered, scored, vectors


@scored.over_rows
def cosent(x: scored.Scored, cfg: config.LossConfig) -> scored.Rows:
  """CoSENT of the batch; per_query holds log(1 + a row's own terms)."""
  return _by_order(x, x.logits(cfg))


@scored.over_rows
def angle(x: scored.Scored, cfg: config.LossConfig) -> scored.Rows:
  """AnglE's angle term of the batch, as `cosent`."""
  return _by_order(x, _angles(x, cfg))


def _by_order(x: scored.Scored, z: jax.Array) -> scored.Rows:
  above = ordered.lse_below(-z, x.keep, x.source, -x.score, ties=False)
  compared = above > ordered.NOTHING / 2
  terms = jnp.where(compared, z + above, ordered.NOTHING)
  total = hard_negatives.log_sum_exp(terms, compared, x.at, x.rows)
  lse = jnp.maximum(total.lse, ordered.NOTHING)
  value = jnp.logaddexp(0, jax.nn.logsumexp(lse))
  counts = x.sums(jnp.ones_like(x.at)) > 0
  return value, jnp.logaddexp(0, lse), counts, {
      # Of pairs with scores, those below another: 0 where all scores are equal.
      'loss/pairs_compared': compared.sum() / jnp.maximum(x.keep.sum(), 1)}


def _angles(x: scored.Scored, cfg):
  """[C], |cosine + sine| over the temperature; halves of a vector are the real and the
  imaginary parts of its numbers."""
  odd = x.passage.shape[1] % 2
  a, b = (jnp.pad(y, ((0, 0), (0, odd))) for y in (x.theirs, x.passage))
  half = a.shape[1] // 2
  product = functools.partial(vectors.products, dtype=cfg.operands)
  sine = product(a[:, half:], b[:, :half]) - product(a[:, :half], b[:, half:])
  return jnp.abs(product(a, b) + sine) * x.of_passage
