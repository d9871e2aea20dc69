"""LLM-Embedder's stabilised distillation: the next best candidate against all worse.

  t_i  = softmax_c(score_ic / teacher_temperature)
  loss = mean_i sum_c t_ic (log(sum_d exp z_id + sum_e exp z_ie) - z_ic)

over the passages c of row i that have a score, with z = s / temperature; d runs over
those that the teacher puts no higher than c (c among them), e over the in-batch
candidates of the row, as losses.masks lets them pass. It goes on teaching where scores
are nearly equal, or one takes all the weight: a teacher that is certain of the positive
makes it InfoNCE.

Options: positive_first puts the positive above all, whatever its score, as the
authors' code does; its weight remains the teacher's.

Zhang et al. 2023 (LLM-Embedder).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxembed import config, mesh
from jaxembed.kernels import contrastive
from jaxembed.losses import hard_negatives, ordered, scored

OPTIONS = {'positive_first': True}


@scored.over_rows
def distill_stable(x: scored.Scored, cfg: config.LossConfig) -> scored.Rows:
  """The mean over rows with a scored passage."""
  z = x.logits(cfg)
  log_t, kept, _ = hard_negatives.log_softmax(x.score, x.keep, x.at, x.rows)
  rank = x.score
  if cfg.option('positive_first'):
    rank = jnp.where(x.positive, jnp.inf, rank)
  worse = ordered.lse_below(z, x.keep, x.at, rank, ties=True)
  others, count = _in_batch(x, cfg)
  gap = jnp.logaddexp(worse, others[x.at]) - z
  weight = jnp.where(x.keep, jnp.exp(log_t), 0)
  number = jnp.maximum((kept > 0).sum(), 1)
  return x.sums(weight * gap), kept > 0, {
      'loss/teacher_entropy': -x.sums(weight * log_t).sum() / number,
      'loss/kept_negatives': count.sum() / number}


def _in_batch(x: scored.Scored, cfg):
  """(Log-sum-exp, number) [Q] of each row's candidates that other rows brought."""
  if cfg.negatives == 'own':
    return jnp.full((x.rows,), ordered.NOTHING), jnp.zeros((x.rows,), jnp.int32)
  # A row's own passages are left out like equal texts: by an id, which is its number.
  row = dataclasses.replace(x.lay.row, ids=(*x.lay.row.ids, x.lay.row.owner))
  col = dataclasses.replace(x.lay.col, ids=(*x.lay.col.ids, x.lay.owner))
  sums, _ = contrastive.masked_lse(
      x.query, x.passage, scale=x.scale, row=row, col=col, impl=cfg.impl,
      dtype=cfg.operands, tile_bytes=cfg.tile_bytes, axes=x.axes, mode=x.mode)
  sums = jax.tree.map(mesh.replicate, sums)
  return jnp.maximum(sums.lse, ordered.NOTHING), sums.num_kept
