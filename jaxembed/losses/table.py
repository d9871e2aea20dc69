"""Table of losses by LossConfig.name."""

import dataclasses
import functools

from jaxembed import config, types
from jaxembed.losses import distill_stable, embed_match, gor, pair_head, weighted_sum
from jaxembed.losses.cosent import angle, cosent
from jaxembed.losses.distill_batch import distill_batch
from jaxembed.losses.distill_kl import distill_kl
from jaxembed.losses.info_nce import OPTIONS, check, info_nce
from jaxembed.losses.result import Named, Result
from jaxembed.losses.score_mse import margin_mse, pair_mse


def _info_nce(query, passage, pairing: types.Pairing, cfg: config.LossConfig,
              params: types.Params) -> Result:
  value, metrics = info_nce(query, passage, pairing, cfg, params.get('log_scale'))
  return Result(value, metrics.pop('loss/of_rows'), metrics)


_by_rows = functools.partial(Named, reads=config.Reads(scores=2))
_by_pairs = functools.partial(Named, reads=config.Reads(scores=1))
_by_vectors = functools.partial(Named, reads=config.Reads(vectors=True))
LOSSES: dict[str, Named] = {
    'info_nce': Named(_info_nce, OPTIONS, check=check),
    'distill_kl': _by_rows(distill_kl),
    'margin_mse': _by_rows(margin_mse),
    'pair_mse': _by_pairs(
        pair_mse, pair_head.OPTIONS, check=pair_head.check, init=pair_head.init),
    'distill_stable': _by_pairs(distill_stable.distill_stable, distill_stable.OPTIONS),
    'cosent': _by_pairs(cosent),
    'angle': _by_pairs(angle),
    'embed_match': _by_vectors(
        embed_match.embed_match, embed_match.OPTIONS, check=embed_match.check,
        init=embed_match.init),
    'distill_batch': _by_vectors(distill_batch),
    'gor': Named(gor.gor, gor.OPTIONS, check=gor.check)}


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
  whole = dict(found.resolved(cfg).options)
  if cfg.name == 'info_nce' and whole['guide']:  # rows without vectors teach as ever
    if cfg.impl in ('tpu', 'gpu'):
      raise ValueError(f"LossConfig.impl is {cfg.impl!r}, whose kernel has no masks by "
                       "a guide; set impl to 'auto' or 'blockwise', or leave guide out")
    return dataclasses.replace(found, reads=config.Reads(vectors=True, alone=False))
  return found
