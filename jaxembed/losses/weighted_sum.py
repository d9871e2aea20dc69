"""Weighted sum of a loss and of those that LossConfig.plus adds to it."""

from collections.abc import Sequence
import dataclasses

from jax.lax import stop_gradient

from jaxembed import config, types
from jaxembed.losses.result import Named, Result


def of(first: Named, added: Sequence[Named]) -> Named:
  """`first` times its LossConfig.weight, and those of cfg.plus times theirs.

  Metrics of an added loss that do not bear its name come under it:
  'distill_kl/accuracy@1' beside 'loss/distill_kl'. They are of each loss without its
  weight; 'loss/weighted_sum' is what is minimised.
  """
  def function(query: types.Array, passage: types.Array, pairing: types.Pairing,
               cfg: config.LossConfig, params: types.Params) -> Result:
    value, rows, metrics = first(
        query, passage, pairing, dataclasses.replace(cfg, plus=[]), params)
    value, rows, metrics = value * cfg.weight, rows * cfg.weight, dict(metrics)
    for loss, part in zip(added, cfg.plus, strict=True):
      more = loss(query, passage, pairing, part, {
          name: x for name, x in params.items() if name != 'log_scale'})
      value += more.value * part.weight
      rows += more.per_query * part.weight
      metrics |= {_under(part.name, name): x for name, x in more.metrics.items()}
    return Result(value, rows, metrics | {'loss/weighted_sum': stop_gradient(value)})

  least = [p.reads.scores for p in (first, *added) if p.reads.scores]
  return dataclasses.replace(first, function=function, reads=config.Reads(
      scores=min(least, default=0), alone=first.reads.scores > 0))


def _under(loss: str, metric: str) -> str:
  own = metric.removeprefix('loss/')
  return metric if own.split('@')[0] == loss else f'{loss}/{own}'
