"""Optimisers: which parameters move, and how, decided by their paths."""

import re

import jax
import optax

from jaxembed import config, types


def make_schedule(cfg: config.OptimConfig, steps: int,
                  peak: float | None = None) -> optax.Schedule:
  """Linear warm-up to `peak`, then `cfg.schedule` down to end_lr at `steps`."""
  peak = cfg.peak_lr if peak is None else peak
  warm = cfg.warmup_steps
  rest = max(steps - warm, 1)
  after = {
      'linear': lambda: optax.linear_schedule(peak, cfg.end_lr, rest),
      'cosine': lambda: optax.cosine_decay_schedule(
          peak, rest, alpha=cfg.end_lr / peak),
      'constant': lambda: optax.constant_schedule(peak),
  }[cfg.schedule]()
  if not warm:
    return after
  # Update number 1 already moves: the ramp is (i + 1) / warm.
  ramp = optax.linear_schedule(peak / warm, peak, warm - 1) if warm > 1 else (
      optax.constant_schedule(peak))
  return optax.join_schedules([ramp, after], [warm])


def trainable(params: types.Params, cfg: config.OptimConfig) -> types.Params:
  """Tree of bools: which parameters move.

  All but those that cfg.freeze matches; where there are adapters, the rest of the
  backbone stays as well.

  Raises:
    ValueError: nothing would move.
  """
  names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
  adapted = any(name.endswith(('lora_a', 'lora_b')) for name in names)

  def moves(path, _):
    name = _name(path)
    if cfg.freeze and re.search(cfg.freeze, name):
      return False
    return (not adapted or not name.startswith('backbone/')
            or name.endswith(('lora_a', 'lora_b')))

  mask = jax.tree.map_with_path(moves, params)
  if not any(jax.tree.leaves(mask)):
    raise ValueError(f'optim.freeze={cfg.freeze!r} leaves nothing to train')
  return mask


def split(params: types.Params, mask: types.Params
          ) -> tuple[types.Params, types.Params]:
  """(parameters that move, the others); None stands where the other has one."""
  return (jax.tree.map(lambda p, m: p if m else None, params, mask),
          jax.tree.map(lambda p, m: None if m else p, params, mask))


def join(moving: types.Params, fixed: types.Params) -> types.Params:
  """Inverse of `split`."""
  return jax.tree.map(lambda a, b: b if a is None else a, moving, fixed,
                      is_leaf=lambda x: x is None)


def make_optimizer(cfg: config.OptimConfig, steps: int, moving: types.Params
                   ) -> optax.GradientTransformation:
  """Clips by the global norm, then updates body and head each their way.

  Weight decay falls on kernels alone: a stacked norm scale is a matrix too, so
  the path decides, not the rank.
  """
  rule = {'adamw': _adamw, 'adafactor': _adafactor, 'sgd': _sgd}[cfg.name]
  labels = jax.tree.map_with_path(
      lambda path, _: 'body' if _name(path).startswith('backbone/') else 'head',
      moving)
  return optax.chain(
      optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm
      else optax.identity(),
      optax.partition({
          'body': rule(cfg, make_schedule(cfg, steps)),
          'head': rule(cfg, make_schedule(cfg, steps, cfg.head_lr or None)),
      }, labels))


def _name(path) -> str:
  return '/'.join(str(getattr(k, 'key', k)) for k in path)


def _decays(params: types.Params):
  return jax.tree.map_with_path(
      lambda path, _: _name(path).endswith('kernel'), params)


def _adamw(cfg, schedule):
  return optax.adamw(schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps,
                     weight_decay=cfg.weight_decay, mask=_decays)


def _adafactor(cfg, schedule):
  return optax.adafactor(schedule, weight_decay_rate=cfg.weight_decay or None,
                         weight_decay_mask=_decays)


def _sgd(cfg, schedule):
  return optax.sgd(schedule, momentum=cfg.b1)
