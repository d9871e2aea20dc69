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

from jaxembed import config
from jaxembed.losses import hard_negatives, scored


@scored.over_rows
def distill_kl(x: scored.Scored, cfg: config.LossConfig) -> scored.Rows:
  """The mean divergence over rows with at least two scored passages."""
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
