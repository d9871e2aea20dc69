"""Mean squared errors of similarities against a teacher's scores.

margin_mse, over the hard negatives n of a row with the positive p:

  loss = mean_i mean_n ((s_ip - s_in) / temperature - (t_ip - t_in))^2

pair_mse, over all passages c of a row:

  loss = mean_i mean_c (s_ic / temperature - t_ic)^2

with t = score / teacher_temperature; passages without a score are left out. With
similarity='dot' and temperature 1 the first is sentence-transformers' MarginMSELoss;
pair_mse is its CosineSimilarityLoss with temperature 1. pair_mse may compare pairs by
a head of its own instead (losses/pair_head.py).

Hofstaetter et al. 2020 (MarginMSE); Barkan et al. 2020 (DSE: the logits of a teacher
that reads both texts, learned by a student that compares their vectors).
"""

import jax.numpy as jnp

from jaxembed import config
from jaxembed.losses import pair_head, scored


@scored.over_rows
def margin_mse(x: scored.Scored, cfg: config.LossConfig) -> scored.Rows:
  """The mean over rows whose positive and a hard negative have scores."""
  z, at = x.logits(cfg), x.lay.positive
  negative = x.keep & ~x.positive & (x.lay.valid & x.keep[at])[x.at]
  count = x.sums(jnp.where(negative, 1, 0))
  wanted = jnp.where(negative, x.score[at][x.at] - x.score, 0)
  margin = jnp.where(negative, z[at][x.at] - z, 0)
  mean = _mean_over_rows(x, count)
  return x.sums(jnp.square(margin - wanted)) / jnp.maximum(count, 1), count > 0, {
      'loss/margin': mean(margin),
      'loss/teacher_margin': mean(wanted),
      # The sign of the margin is the teacher's.
      'loss/margins_agree': mean(
          jnp.where(negative, margin * wanted > 0, False).astype(z.dtype))}


@scored.over_rows
def pair_mse(x: scored.Scored, cfg: config.LossConfig) -> scored.Rows:
  """The mean over rows with a scored passage."""
  z = pair_head.scores(x) if cfg.option('head') == 'concat' else x.logits(cfg)
  count = x.sums(jnp.ones_like(x.at))
  gap = jnp.where(x.keep, z - x.score, 0)
  mean = _mean_over_rows(x, count)
  return x.sums(jnp.square(gap)) / jnp.maximum(count, 1), count > 0, {
      'loss/error': mean(gap)}


def _mean_over_rows(x: scored.Scored, count):
  """Of values [C] the mean of each row's mean over its `count` [Q] that count."""
  def mean(values):
    rows = x.sums(values) / jnp.maximum(count, 1)
    return rows.sum() / jnp.maximum((count > 0).sum(), 1)
  return mean
