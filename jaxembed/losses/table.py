"""Table of losses by LossConfig.name."""

from jaxembed import config, types
from jaxembed.losses.distill_kl import distill_kl
from jaxembed.losses.info_nce import info_nce
from jaxembed.losses.result import Loss, Result


def _info_nce(query, passage, pairing: types.Pairing, cfg: config.LossConfig,
              params: types.Params) -> Result:
  value, metrics = info_nce(query, passage, pairing, cfg, params.get('log_scale'))
  return Result(value, metrics.pop('loss/of_rows'), metrics)


LOSSES: dict[str, Loss] = {'info_nce': _info_nce, 'distill_kl': distill_kl}
