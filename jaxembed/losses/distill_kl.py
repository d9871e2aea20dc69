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

import functools

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, mesh, types
from jaxembed.kernels import contrastive
from jaxembed.losses import checks, hard_negatives, masks, temperature, vectors
from jaxembed.losses.result import Result


def distill_kl(query: types.Array, passage: types.Array, pairing: types.Pairing,
               cfg: config.LossConfig, params: types.Params) -> Result:
  """The mean divergence over rows with at least two scored passages; see Loss.

  Raises ValueError if the pairing has no scores, and as losses.info_nce does.
  """
  if pairing.score is None:
    raise ValueError("LossConfig.name='distill_kl' reads a teacher's scores, and "
                     'pairing.score is None; give rows pos_scores and neg_scores, or '
                     "train with name='info_nce'")
  checks.inputs(query, passage, pairing, cfg)
  query, passage, pairing = jax.tree.map(jnp.asarray, (query, passage, pairing))
  return vectors.over_widths(
      functools.partial(_one_width, pairing=pairing, cfg=cfg, params=params),
      query, passage, pairing, cfg)


def _one_width(query, passage, pairing, cfg, params) -> Result:
  axes = mesh.BATCH if mesh.explicit() else ()
  lay = masks.layout(pairing, cfg)
  query, passage, broken = vectors.comparable(query, passage, cfg, axes)
  common, clamped = temperature.scale(cfg, params.get('log_scale'))
  scale = temperature.of_rows(common, pairing.temperature)
  s, at = hard_negatives.similarities(
      query, passage, lay, cfg, axes, contrastive.pick(cfg.exchange, axes, passage))
  score = mesh.replicate(pairing.score)
  scored = (lay.col.owner >= 0) & ~jnp.isnan(score)
  z = s * (scale[at] if scale.ndim else scale)
  t = jnp.where(scored, score, 0) / cfg.teacher_temperature

  queries = lay.positive.shape[0]
  log_p, kept, top = hard_negatives.log_softmax(z, scored, at, queries)
  log_t, *_ = hard_negatives.log_softmax(t, scored, at, queries)
  counts = kept > 1  # of one passage both distributions are 1
  weight = jnp.where(scored & counts[at], jnp.exp(log_t), 0)

  def over_passages(x):
    return jnp.zeros((queries,), x.dtype).at[at].add(x)

  rows = over_passages(weight * (log_t - log_p))
  number = jnp.maximum(counts.sum(), 1)
  best = scored & (score == jax.ops.segment_max(
      jnp.where(scored, score, -jnp.inf), at, queries)[at])
  agrees = jax.ops.segment_max(
      jnp.where(best, z, -jnp.inf), at, queries) >= top
  value = rows.sum() / number
  return Result(value, stop_gradient(rows), stop_gradient({
      'loss/distill_kl': value,
      'loss/teacher_entropy': -over_passages(weight * log_t).sum() / number,
      # The student's first passage is the teacher's.
      'loss/accuracy@1': (counts & agrees).sum() / number,
      'loss/temperature': 1 / common,
      'loss/temperature_clamped': clamped.astype(jnp.float32),
      'loss/nonfinite_rows': broken,
      'loss/rows_without_scores': (~counts).sum()}))
