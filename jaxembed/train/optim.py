"""Optimisers and learning-rate schedules, assigned by parameter paths."""

from collections.abc import Hashable
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxembed import config, paths, sharding, types


def make_schedule(cfg: config.OptimConfig, steps: int,
                  peak: float | None = None) -> optax.Schedule:
  """Linear warm-up to `peak`, then `cfg.schedule` down to end_lr at `steps`."""
  peak = cfg.peak_lr if peak is None else peak
  warm = warmup(cfg, steps)
  rest = max(steps - warm, 1)
  after = {
      'linear': lambda: optax.linear_schedule(peak, cfg.end_lr, rest),
      'cosine': lambda: optax.cosine_decay_schedule(
          peak, rest, alpha=cfg.end_lr / peak if peak else 0.0),
      'constant': lambda: optax.constant_schedule(peak),
  }[cfg.schedule]()
  if not warm:
    return after
  # Update number 1 already moves: the ramp is (i + 1) / warm.
  ramp = optax.linear_schedule(peak / warm, peak, warm - 1) if warm > 1 else (
      optax.constant_schedule(peak))
  return optax.join_schedules([ramp, after], [warm])


def warmup(cfg: config.OptimConfig, steps: int) -> int:
  """Steps of warm-up in a stage of `steps`: a tenth where more are asked for."""
  return cfg.warmup_steps if cfg.warmup_steps <= steps else max(steps // 10, 1)


def notes(cfg: config.OptimConfig, steps: int) -> list[str]:
  """Warnings: settings that a stage of `steps` does not follow, or does not use."""
  told = []
  if cfg.warmup_steps > steps:
    told.append(f'optim.warmup_steps={cfg.warmup_steps} is more than the stage has '
                f'steps ({steps}); the warm-up is shortened to {warmup(cfg, steps)}')
  unread = {'adafactor': ('b1', 'b2', 'eps'), 'sgd': ('b2', 'eps')}.get(cfg.name, ())
  if cfg.schedule == 'constant':
    unread += 'end_lr',
  plain = config.OptimConfig()
  return told + [
      f'optim.{name}={getattr(cfg, name)} has no effect: '
      + (f'{cfg.name} does not use it' if name != 'end_lr'
         else "schedule='constant' stays at its peak")
      for name in unread if getattr(cfg, name) != getattr(plain, name)]


def trainable(params: types.Params, cfg: config.OptimConfig) -> types.Params:
  """Tree of bools: which parameters are trained.

  All but those that cfg.freeze matches; where there are adapters, the rest of the
  backbone stays as well.

  Raises:
    ValueError: nothing would be trained, or cfg.freeze matches nothing.
  """
  names = [paths.join(path) for path, _ in jax.tree.leaves_with_path(params)]
  adapted = any(name.endswith(('lora_a', 'lora_b')) for name in names)

  def moves(path, _):
    name = paths.join(path)
    if cfg.freeze and re.search(cfg.freeze, name):
      return False
    return (not adapted or not name.startswith('backbone/')
            or name.endswith(('lora_a', 'lora_b')))

  if cfg.freeze and not any(re.search(cfg.freeze, name) for name in names):
    raise ValueError(f'optim.freeze={cfg.freeze!r} matches no parameter; correct '
                     'the pattern (paths look like backbone/layers/attn/q/kernel), or '
                     'leave it out')
  mask = jax.tree.map_with_path(moves, params)
  if not any(jax.tree.leaves(mask)):
    raise ValueError(f'optim.freeze={cfg.freeze!r} leaves nothing to train')
  return mask


def split(params: types.Params, mask: types.Params
          ) -> tuple[types.Params, types.Params]:
  """(trained parameters, frozen ones); None stands where the other has one."""
  return (jax.tree.map(lambda p, m: p if m else None, params, mask),
          jax.tree.map(lambda p, m: None if m else p, params, mask))


def join(trained: types.Params, frozen: types.Params) -> types.Params:
  """Inverse of `split`."""
  return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen,
                      is_leaf=lambda x: x is None)


def make_optimizer(cfg: config.OptimConfig, steps: int, trained: types.Params
                   ) -> optax.GradientTransformation:
  """Global-norm clipping, then an optimiser with its own rate for backbone and head.

  Weight decay falls on kernels and on adapters' matrices alone: a stacked norm
  scale is a matrix too, so the path decides, not the rank.
  """
  rule = {'adamw': _adamw, 'adafactor': _adafactor, 'sgd': _sgd,
          'muon': _adamw}[cfg.name]
  rules: dict[Hashable, optax.GradientTransformation] = {
      'body': rule(cfg, make_schedule(cfg, steps)),
      'head': rule(cfg, make_schedule(cfg, steps, cfg.head_lr or None))}
  labels = jax.tree.map_with_path(
      lambda path, _: 'body' if paths.join(path).startswith('backbone/') else 'head',
      trained)
  if cfg.name == 'muon':
    rules['matrices'] = _muon(cfg, make_schedule(cfg, steps))
    labels = jax.tree.map_with_path(
        lambda path, label: 'matrices' if _is_matrix(path) else label, labels)
    if 'matrices' not in jax.tree.leaves(labels):
      raise ValueError("optim.name='muon' is for kernels of the layers, and none of "
                       "them is trained here (adapters or freeze); use 'adamw'")
  tx = optax.chain(
      optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm
      else optax.identity(),
      optax.partition(rules, labels))
  return _scaled(tx, _factors(cfg, trained)) if cfg.lr_factors else tx


def _scaled(tx, factors: types.Params) -> optax.GradientTransformation:
  """`tx` with each update, weight decay included, times its factor; its state is
  that of `tx`, so that stages with and without factors can carry it."""
  def update(updates, state, params=None):
    updates, state = tx.update(updates, state, params)
    return jax.tree.map(jnp.multiply, updates, factors), state

  return optax.GradientTransformation(tx.init, update)


def _factors(cfg: config.OptimConfig, trained: types.Params) -> types.Params:
  """The factor of each parameter."""
  rules = cfg.lr_factors

  def deciding(path, _):
    return next((i for i, (pattern, _) in enumerate(rules)
                 if re.search(pattern, paths.join(path))), -1)

  which = jax.tree.map_with_path(deciding, trained)
  if unused := set(range(len(rules))) - set(jax.tree.leaves(which)):
    raise ValueError(f'optim.lr_factors: {rules[min(unused)][0]!r} decides for no '
                     'trained parameter; correct the pattern, or leave it out')
  return jax.tree.map(lambda i: rules[i][1] if i >= 0 else 1.0, which)


def carry(before: optax.OptState, fresh: optax.OptState) -> optax.OptState:
  """Optimiser state of the stage before, with the counter of its schedule at 0.

  fresh: the state of the optimiser that goes on, or its shapes.

  Raises:
    ValueError: they belong to different optimisers or parameters.
  """
  if jax.tree.structure(before) != jax.tree.structure(fresh):
    raise ValueError('optim.keep_optimizer_state: the stage before trained other '
                     'parameters, or by another optimiser; give both the same '
                     'optim.name, optim.freeze and loss.learn_temperature, or set it '
                     'to False')
  return jax.tree.map(
      lambda x: jax.tree.map(jnp.zeros_like, x) if _is_counter(x) else x,
      before, is_leaf=_is_counter)


def _is_counter(x) -> bool:
  return isinstance(x, optax.ScaleByScheduleState)


def updates_done(state: optax.OptState) -> jax.Array:
  """[] int32, the updates that an optimiser's state has seen since its start."""
  return next(s.count for s in jax.tree.leaves(state, is_leaf=_is_counter)
              if _is_counter(s))


def norms(grads: types.Params) -> types.Metrics:
  """Euclidean norm of each layer's gradient, and of what stands outside them.

  'grad_norm/layer_07', 'grad_norm/embed', 'grad_norm/pooling': [] float32 each.
  """
  squares = {}
  for path, g in jax.tree.leaves_with_path(grads):
    name = paths.join(path).removeprefix('backbone/').split('/')[0]
    inner = tuple(range(1 if name == 'layers' else 0, g.ndim))
    part = jnp.square(g.astype(jnp.float32)).sum(inner)
    squares[name] = squares.get(name, 0) + part
  layers = squares.pop('layers', jnp.zeros(0))
  squares |= {f'layer_{i:02}': layers[i] for i in range(len(layers))}
  return {f'grad_norm/{name}': jnp.sqrt(x) for name, x in squares.items()}


def _is_matrix(path) -> bool:
  """A stacked kernel [L,in,out] of the layers: what Muon is made for."""
  return bool(re.search(r'^backbone/layers/.*/kernel$', paths.join(path)))


def _decays(params: types.Params):
  return jax.tree.map_with_path(
      lambda path, _: paths.join(path).endswith(('kernel', 'lora_a', 'lora_b')), params)


def _adamw(cfg, schedule):
  return optax.adamw(schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps,
                     weight_decay=cfg.weight_decay, mask=_decays)


def _muon(cfg, schedule):
  """Muon on every layer's matrix alone (Jordan et al. 2024), at AdamW's scale.

  Updates have the root mean square 0.2 whatever a matrix's shape, as AdamW's do,
  so that one learning rate serves both (Liu et al. 2025, arXiv 2502.16982). The
  published momentum has no bias correction. optax corrects for the number of updates
  done; at a count so high that its factor is 1 both are the same.
  """
  each = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
  muon = optax.contrib.muon(
      schedule, weight_decay=cfg.weight_decay, consistent_rms=0.2,
      muon_weight_dimension_numbers=lambda params: jax.tree.map(
          lambda _: each, params))
  is_muon = lambda x: isinstance(x, optax.contrib.MuonState)

  def init(params):
    return jax.tree.map(
        lambda s: s._replace(count=jnp.full_like(s.count, 1 << 20)) if is_muon(s)
        else s, muon.init(params), is_leaf=is_muon)

  return optax.GradientTransformation(init, _unsharded(muon.update))


def _unsharded(update):
  """`update` where the compiler chooses shardings; its result lies as it came.

  Products of a matrix with its own transpose have no one right sharding.
  """
  def run(updates, state, params=None):
    if sharding.spec() is None:
      return update(updates, state, params)
    out = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
    free: Any = jax.sharding.auto_axes(update, out_sharding=out)
    return free(updates, state, params)

  return run


def _adafactor(cfg, schedule):
  """Adafactor (Shazeer and Stern 2018) on every matrix by itself.

  As optax.adafactor, but that weight decay follows the learning rate, and that the
  layers of a stack are clipped and scaled apart, as if they were parameters apart.
  """
  return optax.chain(
      optax.scale_by_factored_rms(), optax.stateless(_clip_by_rms),
      optax.stateless(_scale_by_rms),
      optax.add_decayed_weights(cfg.weight_decay, _decays),
      optax.scale_by_learning_rate(schedule))


def _clip_by_rms(updates, _):
  """Each matrix's update divided by its root mean square where that exceeds 1."""
  return jax.tree.map_with_path(
      lambda path, u: u / jnp.maximum(1.0, _rms(path, u)), updates)


def _scale_by_rms(updates, params):
  """Each matrix's update times the root mean square of the matrix, at least 1e-3."""
  return jax.tree.map_with_path(
      lambda path, u, p: u * jnp.maximum(_rms(path, p), 1e-3), updates, params)


def _rms(path, x):
  """Root mean square of a parameter, of each layer apart: broadcasts against it."""
  first = 1 if paths.join(path).startswith('backbone/layers/') else 0
  return jnp.sqrt(jnp.mean(jnp.square(x), tuple(range(first, x.ndim)), keepdims=True))


def _sgd(cfg, schedule):
  return optax.chain(optax.add_decayed_weights(cfg.weight_decay, _decays),
                     optax.sgd(schedule, momentum=cfg.b1))
