"""KL divergence to a teacher's distribution over each row's own passages.

  t_i  = softmax_c(score_ic / teacher_temperature)
  p_i  = softmax_c(s_ic / temperature)
  loss = mean_i sum_c t_ic (log t_ic - log p_ic)

over the passages c of row i that have a score: a cross-encoder's logit, or a language
model's likelihood of the answer. The value has no factor of temperature^2 (Hinton et
al. 2015), by which sentence-transformers' DistillKLDivLoss multiplies it;
FlagEmbedding's distillation has none either.

Lin et al. 2021 (TCT-ColBERT); Zhang et al. 2023 (LLM-Embedder).
"""

import jax
import jax.numpy as jnp

from jaxembed import config, types
from jaxembed.losses import hard_negatives, scored
from jaxembed.losses.result import Result


def distill_kl(query: types.Array, passage: types.Array, pairing: types.Pairing,
               cfg: config.LossConfig, params: types.Params) -> Result:
  """The mean divergence over rows with at least two scored passages; see Loss.

  Raises ValueError as scored.over_rows does.
  """
  return scored.over_rows(_of_rows, query, passage, pairing, cfg, params)


def _of_rows(x: scored.Scored, cfg):
  z = x.logits(cfg)
  log_p, kept, top = hard_negatives.log_softmax(z, x.keep, x.at, x.rows)
  log_t, *_ = hard_negatives.log_softmax(x.score, x.keep, x.at, x.rows)
  counts = kept > 1  # of one passage both distributions are 1
  weight = jnp.where(x.keep & counts[x.at], jnp.exp(log_t), 0)
  number = jnp.maximum(counts.sum(), 1)
  best = x.keep & (x.score == jax.ops.segment_max(
      jnp.where(x.keep, x.score, -jnp.inf), x.at, x.rows)[x.at])
  agrees = jax.ops.segment_max(
      jnp.where(best, z, -jnp.inf), x.at, x.rows) >= top
  return x.sums(weight * (log_t - log_p)), counts, {
      'loss/teacher_entropy': -x.sums(weight * log_t).sum() / number,
      # The student's first passage is the teacher's.
      'loss/accuracy@1': (counts & agrees).sum() / number}
