"""InfoNCE contrastive loss over in-batch and hard negatives.

For a query q_i, its positive p_i and the log-sum-exp lse_neg_i over its negatives:

  s_p    = <q_i, p_i> / temperature
  loss_i = log(1 + exp(lse_neg_i - s_p)) = softplus(lse_neg_i - s_p)

The positive never enters the kernel: its own sum would drown what the negatives
add once the loss is small, and softplus keeps every digit of both. lse_neg comes
from kernels.contrastive, which streams over tiles of scores.

van den Oord et al. 2018 (InfoNCE); Radford et al. 2021 (symmetric); Li et al.
2023, GTE, and Zhang et al. 2025, Qwen3-Embedding (terms qq, dd, dq, margin); Yeh
et al. 2022 (decoupled); Lin et al. 2017 (focal); Lan et al. 2025 (hardness).

Options (LossConfig.options):
  guide, guide_margin: '', absolute or relative: masks by a teacher's vectors
    (losses/teacher.py).
  mix_pairs, mix_list: negatives mixed of a row's own (losses/mixing.py), so many of
    two, and one of all.
  focal_schedule: constant, or linear: focal_gamma rises from 0 over the stage's steps.
  drop_hardest, drop_from: that share of the rows, those of largest loss, has no weight
    once the share drop_from of the steps is done. With a linear focal_gamma this is
    progressive learning, inspired by PEG (Wu et al. 2023), whose formula is not public.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxembed import config, mesh, types
from jaxembed.kernels import contrastive
from jaxembed.losses import (
    checks,
    hard_negatives,
    masks,
    mixing,
    options,
    schedule,
    teacher,
    temperature,
    vectors,
)
from jaxembed.losses.ordered import NOTHING
from jaxembed.losses.result import Result

OPTIONS = {'guide': '', 'guide_margin': 0.0, 'mix_pairs': 0, 'mix_list': False,
           'focal_schedule': 'constant', 'drop_hardest': 0.0, 'drop_from': 0.8}


def check(values: Mapping[str, Any]) -> None:
  """Raises ValueError on values of OPTIONS that mean nothing."""
  options.require(values, 'guide', values['guide'] in ('', 'absolute', 'relative'),
                  "'', 'absolute' or 'relative'")
  options.require(values, 'guide_margin', 0 <= values['guide_margin'] <= 2, '0 to 2')
  options.require(values, 'mix_pairs', 0 <= values['mix_pairs'] <= 64, '0 to 64')
  options.require(values, 'focal_schedule',
                  values['focal_schedule'] in ('constant', 'linear'),
                  "'constant' or 'linear'")
  options.require(values, 'drop_hardest', 0 <= values['drop_hardest'] < 1,
                  '0 or more, below 1')
  options.require(values, 'drop_from', 0 <= values['drop_from'] <= 1, '0 to 1')


def info_nce(query: types.Array, passage: types.Array, pairing: types.Pairing,
             cfg: config.LossConfig, log_scale: types.Array | None = None,
             row_temperature: types.Array | None = None
             ) -> tuple[jax.Array, types.Metrics]:
  """The mean loss over the global batch, [] float32, and its metrics.

  query [Q,E], passage [C,E] float32: global arrays under an Explicit mesh (rows are
  split over mesh.BATCH), or plain ones without a mesh. cfg.similarity says how
  they are compared: by cosine, whatever their lengths, or by their product.
  Negatives are all passages that `losses.masks` lets pass; the mean runs over rows
  that have a positive. log_scale: [] the learned log(1/temperature), with
  cfg.learn_temperature. row_temperature: [Q] float32, a temperature of each row's
  own in all its terms, 0 where the common one holds; None: pairing.temperature.

  Metrics are [] but for 'loss/of_rows' [Q], the losses that the mean is of.

  With cfg.widths the loss is the weighted mean over prefixes of the vectors, each
  normalised anew (Kusupati et al. 2022), and metrics carry '@width' as well.

  Raises ValueError on shapes, types and options that do not fit, and, outside jit,
  on embeddings that are not finite, naming their rows. Inside jit such a row makes
  the losses that it enters not finite, and 'loss/nonfinite_rows' counts it.
  """
  if row_temperature is not None:
    # numpy's stay so, and are checked inside jit as well.
    to = jnp.asarray if isinstance(row_temperature, jax.Array) else np.asarray
    pairing = dataclasses.replace(
        pairing, temperature=to(row_temperature, np.float32))
  cfg = options.resolved(cfg, OPTIONS, check)
  checks.inputs(query, passage, pairing, cfg)
  query, passage = jnp.asarray(query), jnp.asarray(passage)
  pairing = jax.tree.map(jnp.asarray, pairing)
  out = vectors.over_widths(
      functools.partial(_one_width, pairing=pairing, cfg=cfg, log_scale=log_scale),
      query, passage, pairing, cfg)
  return out.value, out.metrics | {'loss/of_rows': out.per_query}


def _one_width(query, passage, pairing, cfg, log_scale) -> Result:
  axes = mesh.batch_axes()
  lay = masks.layout(pairing, cfg)
  query, passage, broken = vectors.comparable(query, passage, cfg, axes)
  common, clamped = temperature.scale(cfg, log_scale)
  scale = temperature.of_rows(common, pairing.temperature)

  mode = contrastive.pick(cfg.exchange, axes, passage)
  positive = lay.positives_of(passage, axes, mode)
  score = vectors.products(query, positive, cfg.operands)
  limit = masks.thresholds(score, cfg)
  guide = teacher.guide(pairing, lay, cfg, axes, mode)
  lay = teacher.guided(lay, guide)
  if cfg.negatives == 'own':
    sums = hard_negatives.sums(query, passage, lay, limit, scale, cfg, axes, mode)
  else:
    sums = _terms(query, passage, positive, lay, limit, scale, cfg, axes, mode, guide)

  mixed = mixing.sums(
      query, passage, lay, limit, scale, cfg, axes, mode, pairing)
  lse = {name: jnp.maximum(s.lse, NOTHING) for name, s in sums.items()}
  if mixed:
    lse['qd'] = jnp.logaddexp(lse['qd'], jnp.maximum(mixed[0].lse, NOTHING))
  gamma = schedule.gamma(cfg, pairing)
  if cfg.symmetric:
    parts = [_row_loss(x, score * scale, cfg, gamma) for x in lse.values()]
    row = functools.reduce(jnp.add, parts) / len(parts)
  else:
    row = _row_loss(jax.nn.logsumexp(jnp.stack(list(lse.values())), 0), score * scale,
                    cfg, gamma)
  row, told = schedule.without_hardest(row, lay.valid, cfg, pairing)
  count = jnp.maximum(lay.valid.sum(), 1)

  def mean(x):
    return jnp.where(lay.valid, x, 0).sum() / count

  loss = mean(row)
  metrics = _metrics(sums, score, scale, mean, cfg) | _quantiles(
      'loss/positive_score', score, lay.valid) | {
      'loss/info_nce': loss,
      'loss/temperature': 1 / common,
      'loss/temperature_clamped': clamped.astype(jnp.float32),
      'loss/nonfinite_rows': broken,
      'loss/rows_without_positive': (~lay.valid).sum()} | told
  if mixed:
    above = (mixed[1] > score[:, None]) & lay.valid[:, None]
    metrics['loss/mixed_above_positive'] = above.sum() / jnp.maximum(
        (~jnp.isnan(mixed[1])).sum(), 1)
  return Result(loss, *jax.lax.stop_gradient((jnp.where(lay.valid, row, 0), metrics)))


def _terms(query, passage, positive, lay, limit, scale, cfg, axes, mode, guide):
  """Sums over the negatives of each row by term, of [Q] arrays.

  scale: [], or [Q] to give each row its own.
  """
  terms = ('qd', 'dq') if cfg.symmetric else tuple(cfg.terms)
  by_row = scale.ndim == 1
  kernel = {
      'bounded': None if cfg.shift_is_safe and not by_row and not cfg.bounded else
      cfg.shift_is_constant and not by_row, 'impl': cfg.impl,
      'dtype': cfg.operands, 'tile_bytes': cfg.tile_bytes, 'axes': axes, 'mode': mode,
      'hardness': (cfg.hardness if cfg.hardness_on != 'shared' else 0.0,
                   cfg.hardness if cfg.hardness_on != 'own' else 0.0)}
  row, col = _limit(lay.row, limit), lay.col
  if limit is not None and 'dq' in terms:
    col = _limit(col, lay.at_positives(limit, jnp.inf))
  together = 'dq' in terms and not by_row
  rows, cols = contrastive.masked_lse(
      query, passage, scale=scale, row=row, col=col,
      directions=('row', 'col') if together else ('row',), **kernel)
  found = {'qd': jax.tree.map(mesh.replicate, rows)}
  if 'dq' in terms and by_row:
    cols, _ = contrastive.masked_lse(  # sides swapped, so that scales are of rows
        passage, query, scale=lay.at_positives(scale, 1), row=col, col=row, **kernel)
  if 'dq' in terms:
    found['dq'] = jax.tree.map(lambda x: mesh.replicate(x)[lay.positive], cols)
  # Qwen3-Embedding drops by margin where a query is compared, not in dd.
  for name, x, side in (('qq', query, _limit(lay.peer_row, limit)),
                        ('dd', positive, lay.peer_row)):
    if name in terms:
      peers = lay.peer_col
      if guide:
        theirs = guide.query if name == 'qq' else guide.positive
        side = teacher.with_guide(side, theirs, guide.limit)
        peers = teacher.with_guide(peers, theirs)
      found[name], _ = contrastive.masked_lse(
          x, x, scale=scale, row=side, col=peers, **kernel)
      found[name] = jax.tree.map(mesh.replicate, found[name])
  return {name: found[name] for name in terms}


def _limit(side, threshold):
  return dataclasses.replace(side, threshold=threshold)


def _row_loss(lse, positive, cfg, gamma):
  """Loss of each row from its negatives' log-sum-exp and its positive's logit."""
  empty = lse <= NOTHING
  gap = jnp.maximum(lse, NOTHING) - positive
  loss = jnp.where(empty, 0.0, gap) if cfg.decoupled else jax.nn.softplus(gap)
  if cfg.focal_gamma:
    # 1 - p; the floor keeps the power's derivative finite at 0.
    miss = jnp.maximum(jax.nn.sigmoid(gap), jnp.finfo(gap.dtype).tiny)
    weight = miss**gamma
    loss *= jax.lax.stop_gradient(weight) if cfg.focal_detach else weight
  return loss


def _metrics(sums, score, scale, mean, cfg):
  kept = functools.reduce(jnp.add, [s.num_kept for s in sums.values()])
  kept = kept.astype(jnp.float32)
  out = {'loss/positive_score': mean(score),
         'loss/kept_negatives': mean(kept),
         'loss/rows_without_negatives': mean(kept == 0)}
  # The positive above every passage that counts; hardness moves their logits apart.
  if not cfg.hardness:
    out['loss/accuracy@1'] = mean(score * scale > sums['qd'].max_logit)
    out |= _quantiles('loss/hardest_negative', sums['qd'].max_logit / scale,
                      sums['qd'].max_logit > -jnp.inf)
  if cfg.bounded:  # rows whose every logit vanished under a constant shift
    lost = [(s.num_kept > 0) & (s.lse == -jnp.inf) for s in sums.values()]
    out['loss/underflow_rows'] = sum(x.sum() for x in lost)
  return out


def _quantiles(name, x, counts):
  """Deciles 1, 5 and 9 of x [Q] where it counts; NaN if it does nowhere."""
  found = jnp.nanquantile(jnp.where(counts, x, jnp.nan), jnp.float32((0.1, 0.5, 0.9)))
  return {f'{name}_p{p}': q for p, q in zip((10, 50, 90), found)}
