"""Table of losses by LossConfig.name."""

from jaxembed import config, types
from jaxembed.config import check
from jaxembed.losses.distill_kl import distill_kl
from jaxembed.losses.info_nce import info_nce
from jaxembed.losses.result import Named, Result


def _info_nce(query, passage, pairing: types.Pairing, cfg: config.LossConfig,
              params: types.Params) -> Result:
  value, metrics = info_nce(query, passage, pairing, cfg, params.get('log_scale'))
  return Result(value, metrics.pop('loss/of_rows'), metrics)


LOSSES: dict[str, Named] = {
    'info_nce': Named(_info_nce),
    'distill_kl': Named(distill_kl, reads_scores=True)}


def named(cfg: config.LossConfig) -> Named:
  """The loss that `cfg` names.

  Raises:
    ValueError: there is none, or it does not read one of cfg.options.
  """
  if cfg.name not in LOSSES:
    raise ValueError(f'LossConfig.name is {cfg.name!r}; choose one of '
                     f'{", ".join(LOSSES)}, or pass a function: loop.train(loss=)')
  found = LOSSES[cfg.name]
  check.options(cfg, found.options, f'the loss {cfg.name}')
  return found
