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

  reads = [p.reads for p in (first, *added)]
  return dataclasses.replace(
      first, function=function, init=_init(first, added), reads=config.Reads(
          scores=min((r.scores for r in reads if r.scores), default=0),
          vectors=any(r.vectors for r in reads),
          alone=first.reads.alone and first.reads != config.Reads()))


def _init(first: Named, added: Sequence[Named]):
  def init(cfg: config.LossConfig, width: int, key) -> types.Params:
    found: types.Params = {}
    for loss, part in zip((first, *added), (cfg, *cfg.plus), strict=True):
      if loss.init:
        found |= loss.init(loss.resolved(part), width, key)
    return found
  return init


def _under(loss: str, metric: str) -> str:
  own = metric.removeprefix('loss/')
  return metric if own.split('@')[0] == loss else f'{loss}/{own}'
