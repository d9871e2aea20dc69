"""Teacher's scores of each row's own passages, beside the model's similarities."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, mesh, types
from jaxembed.kernels import contrastive
from jaxembed.losses import checks, hard_negatives, masks, temperature, vectors
from jaxembed.losses.result import Loss, Result


@dataclasses.dataclass(frozen=True)
class Scored:
  """A batch as a loss by scores sees it: [C] arrays are replicated on every device."""

  query: jax.Array  # [Q,E], comparable, split over `axes`
  passage: jax.Array  # [C,E], likewise
  lay: masks.Layout
  scale: jax.Array  # [] or [Q], 1/temperature
  at: jax.Array  # [C] int32, the row that a passage was made for
  keep: jax.Array  # [C] bool, whether it has a score
  score: jax.Array  # [C], over the teacher's temperature; 0 without one
  positive: jax.Array  # [C] bool, it is its row's positive
  source: jax.Array  # [C] int32, the data set of its row
  axes: tuple[str, ...]
  mode: str  # of kernels.contrastive
  params: types.Params  # of the loss

  @property
  def rows(self) -> int:
    """Q."""
    return self.lay.positive.shape[0]

  @property
  def of_passage(self) -> jax.Array:
    """1/temperature of each passage's row, [] or [C]."""
    return self.scale[self.at] if self.scale.ndim else self.scale

  @property
  def theirs(self) -> jax.Array:
    """[C,E], the query of each passage's row, split over `axes`."""
    return contrastive.take(self.query, self.at, self.axes, self.mode)

  def logits(self, cfg: config.LossConfig) -> jax.Array:
    """[C], similarities of passages and their rows' queries over the temperature."""
    s, _ = hard_negatives.similarities(
        self.query, self.passage, self.lay, cfg, self.axes, self.mode)
    return s * self.of_passage

  def sums(self, x: jax.Array) -> jax.Array:
    """[Q], the sum of x [C] over each row's passages that have scores."""
    return jnp.zeros((self.rows,), x.dtype).at[self.at].add(
        jnp.where(self.keep, x, 0))


# The loss of each row [Q], whether it counts [Q] bool, and metrics; or the value itself
# in front of these.
Rows = tuple[Any, ...]
OfRows = Callable[[Scored, config.LossConfig], Rows]


def over_rows(of_rows: OfRows) -> Loss:
  """Decorator: the loss that is the mean of `of_rows` over the rows that count, with
  the metrics of all losses by scores.

  It raises ValueError if the pairing has no scores, or one that is infinite, and as
  losses.info_nce does.
  """
  def loss(query: types.Array, passage: types.Array, pairing: types.Pairing,
           cfg: config.LossConfig, params: types.Params) -> Result:
    if pairing.score is None:
      raise ValueError(f"LossConfig.name={cfg.name!r} reads a teacher's scores, and "
                       'pairing.score is None; give rows pos_scores and neg_scores, or '
                       "train with name='info_nce'")
    checks.inputs(query, passage, pairing, cfg)
    query, passage = jnp.asarray(query), jnp.asarray(passage)
    pairing = jax.tree.map(jnp.asarray, pairing)
    return vectors.over_widths(
        functools.partial(_one_width, of_rows, pairing=pairing, cfg=cfg, params=params),
        query, passage, pairing, cfg)

  loss.__doc__ = of_rows.__doc__
  return loss


def _one_width(of_rows, query, passage, pairing, cfg, params) -> Result:
  axes = mesh.batch_axes()
  lay = masks.layout(pairing, cfg)
  query, passage, broken = vectors.comparable(query, passage, cfg, axes)
  common, clamped = temperature.scale(cfg, params.get('log_scale'))
  score = mesh.replicate(pairing.score)
  keep = (lay.owner >= 0) & ~jnp.isnan(score)
  at = lay.asked_by
  found = Scored(
      query, passage, lay, temperature.of_rows(common, pairing.temperature), at, keep,
      jnp.where(keep, score, 0) / cfg.teacher_temperature,
      mesh.replicate(pairing.is_positive), mesh.replicate(pairing.group)[at], axes,
      contrastive.pick(cfg.exchange, axes, passage), params)
  *value, rows, counts, metrics = of_rows(found, cfg)
  rows = jnp.where(counts, rows, 0)
  value = value[0] if value else rows.sum() / jnp.maximum(counts.sum(), 1)
  return Result(value, stop_gradient(rows), stop_gradient(metrics | {
      f'loss/{cfg.name}': value,
      'loss/temperature': 1 / common,
      'loss/temperature_clamped': clamped.astype(jnp.float32),
      'loss/nonfinite_rows': broken,
      'loss/rows_without_scores': (~counts).sum()}))
