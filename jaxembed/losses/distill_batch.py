"""KL divergence to a teacher's distribution over all in-batch candidates.

  t_i  = softmax_c(cos_teacher(q_i, p_c) / teacher_temperature)
  p_i  = softmax_c(s_ic / temperature)
  loss = mean_i sum_c t_ic (log t_ic - log p_ic)

over the row's own passages and, as far as its in_batch and cfg.same_group let them
pass, those of other rows. The teacher's cosines are those of its vectors, which rows
bring; no [Q,C] array is formed, for either.

KaLM-Embedding-V2.5 (contrastive distillation).
"""

import functools

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, mesh, types
from jaxembed.kernels import contrastive
from jaxembed.losses import checks, masks, teacher, temperature, vectors
from jaxembed.losses.result import Result


def distill_batch(query: types.Array, passage: types.Array, pairing: types.Pairing,
                  cfg: config.LossConfig, params: types.Params) -> Result:
  """The mean divergence over rows whose query and two candidates have vectors of the
  teacher's; see Loss.

  Raises ValueError if the pairing has none, and as losses.info_nce does.
  """
  teacher.required(pairing, cfg)
  checks.inputs(query, passage, pairing, cfg)
  query, passage = jnp.asarray(query), jnp.asarray(passage)
  pairing = jax.tree.map(jnp.asarray, pairing)
  return vectors.over_widths(
      functools.partial(_one_width, pairing=pairing, cfg=cfg, params=params),
      query, passage, pairing, cfg)


def _one_width(query, passage, pairing, cfg, params) -> Result:
  axes = mesh.batch_axes()
  lay = masks.layout(pairing, cfg)
  query, passage, broken = vectors.comparable(query, passage, cfg, axes)
  common, clamped = temperature.scale(cfg, params.get('log_scale'))
  scale = temperature.of_rows(common, pairing.temperature)
  mode = contrastive.pick(cfg.exchange, axes, passage)
  of_query, of_passage = teacher.directions(pairing, axes)
  has_query, has_passage = (~jnp.isnan(x).any(-1) for x in (of_query, of_passage))
  of_query = jnp.where(has_query[:, None], of_query, 0)
  of_passage = jnp.where(has_passage[:, None], of_passage, 0)
  lse = functools.partial(
      contrastive.masked_lse, impl=cfg.impl, tile_bytes=cfg.tile_bytes, axes=axes,
      mode=mode, row=contrastive.MaskVectors(owner=lay.row.owner, group=lay.row.group),
      col=contrastive.MaskVectors(
          owner=lay.col.owner, group=lay.col.group,
          bias=jnp.where(mesh.replicate(has_passage), 0, -jnp.inf)))
  sharp = 1 / cfg.teacher_temperature

  def expected(a, b):
    """[Q], the teacher's mean of the products of a's rows and their candidates in b."""
    return vectors.products(a, _mean_by(lse, sharp, of_query, of_passage, b))

  log_t, _ = lse(of_query, of_passage, scale=sharp)
  log_z, _ = lse(query, passage, scale=scale, dtype=cfg.operands)
  log_t, log_z = (jax.tree.map(mesh.replicate, x) for x in (log_t, log_z))
  counts = mesh.replicate(has_query) & (log_t.num_kept > 1)
  entropy = log_t.lse - sharp * expected(of_query, of_passage)
  cross = log_z.lse - scale * expected(query, passage)
  rows = jnp.where(counts, cross - entropy, 0)
  number = jnp.maximum(counts.sum(), 1)
  value = rows.sum() / number
  return Result(value, stop_gradient(rows), stop_gradient({
      'loss/distill_batch': value,
      'loss/teacher_entropy': jnp.where(counts, entropy, 0).sum() / number,
      'loss/temperature': 1 / common,
      'loss/temperature_clamped': clamped.astype(jnp.float32),
      'loss/nonfinite_rows': broken,
      'loss/rows_without_vectors': (~counts).sum()}))


def _mean_by(lse, sharp, of_query, of_passage, b):
  """[Q,E], for every row the mean of b [C,E] by the teacher's distribution.

  It is the gradient of the teacher's log-sum-exp by a part of the queries that is 0,
  and so adds nothing to the logits, where passages carry b; its own gradient likewise,
  with the parts exchanged. So tiles of the distribution are formed as the kernel does.
  """
  def total(x, y):
    found, _ = lse(jnp.concatenate([of_query, x], 1),
                   jnp.concatenate([of_passage, y], 1), scale=sharp)
    return jnp.where(found.num_kept > 0, found.lse, 0).sum()

  @jax.custom_vjp
  def mean(b):
    nothing = jnp.zeros_like(of_query, shape=(of_query.shape[0], b.shape[1]))
    nothing = contrastive.split_rows(nothing, mesh.batch_axes())
    return jax.grad(total)(nothing, b) / sharp

  def backward(_, ct):
    nothing = jnp.zeros_like(b)
    return jax.grad(total, 1)(ct, nothing) / sharp,

  mean.defvjp(lambda b: (mean(b), None), backward)
  return mean(b)
