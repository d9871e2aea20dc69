"""The contrastive loss: a query's positive against everything that is not.

  s_p    = <q_i, p_i> / temperature
  loss_i = log(1 + exp(lse_neg_i - s_p)) = softplus(lse_neg_i - s_p)

The positive never enters the kernel: its own sum would drown what the negatives
add once the loss is small, and softplus keeps every digit of both. lse_neg comes
from kernels.contrastive, which streams over tiles of scores.

van den Oord et al. 2018 (InfoNCE); Radford et al. 2021 (symmetric); Li et al.
2023, GTE, and Zhang et al. 2025, Qwen3-Embedding (terms qq, dd, dq, margin); Yeh
et al. 2022 (decoupled); Lin et al. 2017 (focal); Lan et al. 2025 (hardness).
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxembed import config, mesh, precision, types
from jaxembed.kernels import contrastive
from jaxembed.losses import masks, own, temperature

# Where a log-sum-exp of nothing is put before further arithmetic: softplus of it
# and the gradient are exactly 0, and no infinity meets another.
_NOTHING = -1e30


def info_nce(query, passage, pairing: types.Pairing, cfg: config.LossConfig,
             log_scale=None, row_temperature=None
             ) -> tuple[jax.Array, types.Metrics]:
  """The mean loss over the global batch, [] float32, and its metrics.

  query [Q,E], passage [C,E] float32 with unit rows: global arrays under an
  Explicit mesh (rows are split over mesh.BATCH), or plain ones without a mesh.
  Negatives are all passages that `losses.masks` lets pass; the mean runs over rows
  that have a positive. log_scale: [] the learned log(1/temperature), with
  cfg.learn_temperature. row_temperature: [Q] float32, a temperature of each row's
  own in all its terms, 0 where the common one holds; None: pairing.temperature.

  Metrics are [] but for 'loss/of_rows' [Q], the losses that the mean is of.

  With cfg.widths the loss is the weighted mean over prefixes of the vectors, each
  normalised anew (Kusupati et al. 2022), and metrics carry '@width' as well.

  Raises ValueError on shapes, types and options that do not fit, and, outside jit,
  on embeddings that are not finite, naming their rows. Inside jit the metric
  'loss/nonfinite_rows' counts them.
  """
  _check(query, passage, pairing, cfg)
  if row_temperature is None:
    row_temperature = pairing.temperature
  if row_temperature is not None:
    cfg.check_row_temperatures()
    row_temperature = masks.replicate(jnp.asarray(row_temperature, jnp.float32))
  query, passage, pairing = jax.tree.map(jnp.asarray, (query, passage, pairing))
  if not cfg.widths:
    return _one_width(query, passage, pairing, cfg, log_scale, row_temperature)
  weights = cfg.width_weights or (1.0,) * len(cfg.widths)
  loss, rows, metrics = 0.0, 0.0, {}
  for width, weight in zip(cfg.widths, weights, strict=True):
    part, seen = _one_width(_prefix(query, width), _prefix(passage, width),
                            pairing, cfg, log_scale, row_temperature)
    share = weight / sum(weights)
    loss, rows = loss + part * share, rows + seen['loss/of_rows'] * share
    if width == max(cfg.widths):
      metrics |= seen
    metrics |= {f'{name}@{width}': seen[name] for name in
                ('loss/info_nce', 'loss/accuracy@1') if name in seen}
  return loss, metrics | {'loss/info_nce': loss, 'loss/of_rows': rows}


def _one_width(query, passage, pairing, cfg, log_scale, row_temperature):
  axes = mesh.BATCH if mesh.explicit() else ()
  lay = masks.layout(pairing, cfg)
  query, passage = contrastive.split_rows((query, passage), axes)
  broken = _nonfinite_rows(query) + _nonfinite_rows(passage)
  query, passage = _rounded(query, cfg.dtype), _rounded(passage, cfg.dtype)
  common, clamped = temperature.scale(cfg, log_scale)
  scale = (common if row_temperature is None
           else temperature.of_rows(common, row_temperature))

  mode = contrastive.pick(cfg.exchange, axes, passage)
  positive = contrastive.take(
      passage, contrastive.split_rows(lay.positive, axes), axes, mode)
  score = masks.replicate(jnp.einsum(  # cosine of query and positive, [Q]
      'QE,QE->Q', query, positive, precision=precision.of_dtype(cfg.dtype),
      preferred_element_type=jnp.float32))
  limit = masks.thresholds(score, cfg)
  if cfg.negatives == 'own':
    sums = own.sums(query, passage, lay, limit, scale, cfg, axes, mode)
  else:
    sums = _terms(query, passage, positive, lay, limit, scale, cfg, axes, mode)

  if cfg.symmetric:
    parts = [_row_loss(s.lse, score * scale, cfg) for s in sums.values()]
    row = sum(parts) / len(parts)
  else:
    lse = jnp.stack([jnp.maximum(s.lse, _NOTHING) for s in sums.values()])
    row = _row_loss(jax.nn.logsumexp(lse, 0), score * scale, cfg)
  count = jnp.maximum(lay.valid.sum(), 1)

  def mean(x):
    return jnp.where(lay.valid, x, 0).sum() / count

  loss = mean(row)
  metrics = _metrics(sums, score, scale, mean, cfg) | _quantiles(
      'loss/positive_score', score, lay.valid) | {
      'loss/info_nce': loss,
      'loss/of_rows': jnp.where(lay.valid, row, 0),
      'loss/temperature': 1 / common,
      'loss/temperature_clamped': clamped.astype(jnp.float32),
      'loss/nonfinite_rows': broken,
      'loss/rows_without_positive': (~lay.valid).sum()}
  return loss, jax.lax.stop_gradient(metrics)


def _terms(query, passage, positive, lay, limit, scale, cfg, axes, mode):
  """Sums over the negatives of each row by term, of [Q] arrays.

  scale: [], or [Q] to give each row its own. The kernel knows one scale for all,
  so theirs are multiplied into the side that the row stands on.
  """
  terms = ('qd', 'dq') if cfg.symmetric else tuple(cfg.terms)
  shared = cfg.hardness if cfg.hardness_on != 'own' else 0.0
  mine = cfg.hardness if cfg.hardness_on != 'shared' else 0.0
  options = {
      'bounded': cfg.bounded, 'impl': cfg.impl, 'dtype': cfg.dtype,
      'tile_bytes': cfg.tile_bytes, 'axes': axes, 'mode': mode}
  row, col = _limit(lay.row, limit), lay.col
  if limit is not None and 'dq' in terms:
    everywhere = jnp.full(col.owner.shape, jnp.inf, jnp.float32)
    at = jnp.where(lay.valid, lay.positive, everywhere.size)
    col = _limit(col, everywhere.at[at].set(limit, mode='drop'))
  options['hardness'] = mine, shared
  each = scale.ndim == 1
  left, side, rest = _fold(query, row, scale, axes)
  rows, cols = contrastive.masked_lse(
      left, passage, scale=rest, row=side, col=col,
      directions=('row', 'col') if 'dq' in terms and not each else ('row',), **options)
  found = {'qd': jax.tree.map(masks.replicate, rows)}
  if 'dq' in terms and each:
    of_columns = jnp.ones(col.owner.shape, scale.dtype)
    of_columns = of_columns.at[
        jnp.where(lay.valid, lay.positive, of_columns.size)].set(scale, mode='drop')
    right, side, rest = _fold(passage, col, of_columns, axes)
    _, cols = contrastive.masked_lse(
        query, right, scale=rest, row=row, col=side, directions=('col',), **options)
  if 'dq' in terms:
    found['dq'] = jax.tree.map(lambda x: masks.replicate(x)[lay.positive], cols)
  # Qwen3-Embedding drops by margin where a query is compared, not in dd.
  for name, x, side in (('qq', query, _limit(lay.peer_row, limit)),
                        ('dd', positive, lay.peer_row)):
    if name in terms:
      left, side, rest = _fold(x, side, scale, axes)
      found[name], _ = contrastive.masked_lse(
          left, x, scale=rest, row=side, col=lay.peer_col, **options)
      found[name] = jax.tree.map(masks.replicate, found[name])
  return {name: found[name] for name in terms}


def _fold(x, side, scale, axes):
  """(x, its side, the kernel's scale): scales of single rows go into x."""
  if not scale.ndim:
    return x, side, scale
  if side.threshold is not None:
    side = _limit(side, side.threshold * scale)
  return x * contrastive.split_rows(scale, axes)[:, None], side, jnp.float32(1)


def _limit(side, threshold):
  return dataclasses.replace(side, threshold=threshold)


def _row_loss(lse, positive, cfg):
  """Loss of each row from its negatives' log-sum-exp and its positive's logit."""
  empty = lse <= _NOTHING
  gap = jnp.maximum(lse, _NOTHING) - positive
  loss = jnp.where(empty, 0.0, gap) if cfg.decoupled else jax.nn.softplus(gap)
  if cfg.focal_gamma:
    # 1 - p; the floor keeps the power's derivative finite at 0.
    miss = jnp.maximum(jax.nn.sigmoid(gap), jnp.finfo(gap.dtype).tiny)
    weight = miss**cfg.focal_gamma
    loss *= jax.lax.stop_gradient(weight) if cfg.focal_detach else weight
  return loss


def _metrics(sums, score, scale, mean, cfg):
  kept = sum(s.kept for s in sums.values()).astype(jnp.float32)
  out = {'loss/positive_score': mean(score),
         'loss/kept_negatives': mean(kept),
         'loss/rows_without_negatives': mean(kept == 0)}
  # The positive above every passage that counts; hardness moves their logits apart.
  if sums['qd'].top is not None and not cfg.hardness:
    out['loss/accuracy@1'] = mean(score * scale > sums['qd'].top)
    out |= _quantiles('loss/hardest_negative', sums['qd'].top / scale,
                      sums['qd'].top > -jnp.inf)
  if cfg.bounded:
    lost = [(s.kept > 0) & (s.lse == -jnp.inf) for s in sums.values()]
    out['loss/underflow_rows'] = sum(x.sum() for x in lost)
  return out


def _quantiles(name, x, counts):
  """Deciles 1, 5 and 9 of x [Q] where it counts; NaN if it does nowhere."""
  found = jnp.nanquantile(jnp.where(counts, x, jnp.nan), jnp.float32((0.1, 0.5, 0.9)))
  return {f'{name}_p{p}': q for p, q in zip((10, 50, 90), found)}


def _prefix(x, width):
  x = x[:, :width]
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def _rounded(x, dtype):
  """x float32 as the kernel's products will see it; its gradient is not rounded."""
  if dtype == 'float32':
    return x
  # A pair of casts would be optimised away (XLA allows excess precision).
  return x + jax.lax.stop_gradient(jax.lax.reduce_precision(x, 8, 7) - x)


def _nonfinite_rows(x):
  return (~jnp.isfinite(x).all(-1)).sum()


def _check(query, passage, pairing, cfg):
  chex.assert_rank([query, passage], 2)
  if query.shape[1] != passage.shape[1]:
    raise ValueError(f'queries are {query.shape[1]} wide and passages '
                     f'{passage.shape[1]}; one model must embed both')
  if cfg.widths and max(cfg.widths) > query.shape[1]:
    raise ValueError(f'widths {cfg.widths} exceed the embedding width '
                     f'{query.shape[1]}; drop those above it')
  _check_pairing(pairing, query.shape[0], passage.shape[0])
  for name, x in (('query', query), ('passage', passage)):
    if x.dtype != jnp.float32:
      raise ValueError(f'{name} embeddings are {x.dtype}; give float32 (the '
                       'products may still be bfloat16: LossConfig.dtype)')
    if not isinstance(x, jax.core.Tracer):
      bad = np.flatnonzero(~np.isfinite(np.asarray(x)).all(-1))
      if bad.size:
        raise ValueError(
            f'{name} embeddings have NaN or inf in {bad.size} rows, first '
            f'{bad[:8].tolist()}; look at those texts and at the learning rate')


def _check_pairing(pairing, queries, passages):
  rows = {'query_id': (queries, np.int32), 'group': (queries, np.int32),
          'in_batch': (queries, np.bool_), 'owner': (passages, np.int32),
          'is_positive': (passages, np.bool_), 'passage_id': (passages, np.int32),
          'temperature': (queries, np.float32), 'score': (passages, np.float32),
          'known': (queries, np.int32)}
  for name, (size, dtype) in rows.items():
    x = getattr(pairing, name)
    if x is None and name in ('temperature', 'score', 'known'):
      continue
    want = (size, *x.shape[1:2]) if name == 'known' else (size,)
    if x.shape != want or (name == 'known' and x.ndim != 2):
      raise ValueError(f'pairing.{name} has shape {x.shape}, not '
                       f'{f"({size}, P)" if name == "known" else want}')
    if x.dtype != dtype:
      raise ValueError(f'pairing.{name} is {x.dtype}; it must be {np.dtype(dtype)}')
