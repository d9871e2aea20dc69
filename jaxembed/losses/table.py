"""Table of losses by LossConfig.name."""

import functools

from jaxembed import config, types
from jaxembed.config import check
from jaxembed.losses import distill_stable, weighted_sum
from jaxembed.losses.cosent import angle, cosent
from jaxembed.losses.distill_kl import distill_kl
from jaxembed.losses.info_nce import info_nce
from jaxembed.losses.result import Named, Result
from jaxembed.losses.score_mse import margin_mse, pair_mse


def _info_nce(query, passage, pairing: types.Pairing, cfg: config.LossConfig,
              params: types.Params) -> Result:
  value, metrics = info_nce(query, passage, pairing, cfg, params.get('log_scale'))
  return Result(value, metrics.pop('loss/of_rows'), metrics)


_rows = functools.partial(Named, reads=config.Reads(scores=2))
_pairs = functools.partial(Named, reads=config.Reads(scores=1))
LOSSES: dict[str, Named] = {
    'info_nce': Named(_info_nce),
    'distill_kl': _rows(distill_kl),
    'margin_mse': _rows(margin_mse),
    'pair_mse': _pairs(pair_mse),
    'distill_stable': _pairs(
        distill_stable.distill_stable, distill_stable.OPTIONS),
    'cosent': _pairs(cosent),
    'angle': _pairs(angle)}


def named(cfg: config.LossConfig) -> Named:
  """The loss that `cfg` names, with those that it adds.

  Raises:
    ValueError: there is none, or it does not read one of cfg.options.
  """
  found = _alone(cfg)
  if not cfg.plus and cfg.weight == 1:
    return found
  return weighted_sum.of(found, [_alone(part) for part in cfg.plus])


def _alone(cfg: config.LossConfig) -> Named:
  if cfg.name not in LOSSES:
    raise ValueError(f'LossConfig.name is {cfg.name!r}; choose one of '
                     f'{", ".join(LOSSES)}, or pass a function: loop.train(loss=)')
  found = LOSSES[cfg.name]
  check.options(cfg, found.options, f'the loss {cfg.name}')
  return found
