"""Jitted training update: loss, gradient, optimiser, running means."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import optax

from jaxembed import config, losses, precision, sharding, types
from jaxembed.mesh import replicate
from jaxembed.models import encoder, transformer
from jaxembed.train import ema, grad_cache, optim

# Folded into a step's key: no chunk or layer has so high a number.
_DRAWN_BY_LOSS = 2**31 - 1
Update = Callable[[types.TrainState, types.Batch],
                  tuple[types.TrainState, types.Metrics]]


def init_state(params: types.Params, stage: config.StageConfig, step: int = 0,
               carried: optax.OptState | None = None, *,
               model: config.ModelConfig | None = None, seed: int = 0
               ) -> types.TrainState:
  """A state about to make update `step` + 1; moments are sharded like params.

  Parameters of the loss are the stage's own: loss/log_scale, the learned temperature
  (loss.learn_temperature), and those that the loss brings (losses.Named.init), for
  vectors of `model`, drawn from `seed`. They start anew, or where the stage before
  ended if that had them too. `carried` is the optimiser's state of the stage before,
  to go on with; the schedule begins anew all the same.
  """
  own = _of_loss(stage.loss, params.get('loss', {}), model, seed)
  params = {k: v for k, v in params.items() if k != 'loss'} | (
      {'loss': own} if own else {})
  trained, _, tx = _optimizer(params, stage)
  means = jax.jit(ema.init)(trained) if stage.optim.ema_decay else None
  if carried is None:
    opt_state = jax.jit(tx.init)(trained)
  else:
    opt_state = optim.carry(carried, jax.eval_shape(tx.init, trained))
  return types.TrainState(jnp.asarray(step, jnp.int32), params, opt_state, means)


def _of_loss(cfg: config.LossConfig, before: types.Params,
             model: config.ModelConfig | None, seed: int) -> types.Params:
  """The loss's own parameters, those of `before` where they are of the same shape."""
  own, loss = {}, losses.named(cfg) if cfg.name in losses.LOSSES else None
  if cfg.learn_temperature:
    own['log_scale'] = losses.initial_log_scale(cfg)
  if loss and loss.init:
    if model is None:
      raise ValueError(f'the loss {cfg.name} has parameters, whose shape follows the '
                       "model's; give init_state the model")
    own |= loss.init(loss.resolved(cfg), model.embedding_dim, jax.random.key(seed))
  return {name: before[name] if name in before and _shapes(before[name]) == _shapes(x)
          else x for name, x in own.items()}


def _shapes(tree):
  return jax.tree.map(jnp.shape, tree)


def abstract_state(params: types.Params, stage: config.StageConfig,
                   mesh: jax.sharding.Mesh, model: config.ModelConfig | None = None
                   ) -> types.TrainState:
  """`init_state` as jax.ShapeDtypeStructs on the mesh; computes nothing."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(
          mesh, x.sharding.spec if x.sharding else jax.P())),
      jax.eval_shape(lambda p: init_state(p, stage, model=model), params))


def loss_and_metrics(params: types.Params, batch: types.Batch,
                     model: config.ModelConfig, stage: config.StageConfig,
                     key: jax.Array, loss: losses.Loss | None = None,
                     progress: jax.Array | float = 0.0
                     ) -> tuple[jax.Array, types.Metrics]:
  """([] float32, metrics) of a global batch.

  `key` drives dropout and what a loss draws at random.

  'train/finite' tells whether the loss and every text's embedding are finite.
  loss: in place of the one that stage.loss.name names.
  progress: the share of the stage's steps that are done.
  """
  query, passage = _embed(params, model, batch, stage, key)
  asked: losses.Loss = loss or losses.named(stage.loss)
  pairing = dataclasses.replace(
      batch.pairing, progress=jnp.float32(progress),
      seed=jax.random.bits(jax.random.fold_in(key, _DRAWN_BY_LOSS)))
  out = asked(query, passage, pairing, stage.loss.of_model(model.dtype),
              params.get('loss', {}))
  # By source, for the record.
  group, zeros = replicate(batch.pairing.group), jnp.zeros(
      len(stage.data.sources))
  owner = replicate(batch.pairing.owner)
  here = jnp.zeros(group.size).at[jnp.where(owner >= 0, owner, group.size)].set(
      1, mode='drop')  # rows with passages: others were skipped
  real = batch.pairing.owner >= 0
  finite = (jnp.isfinite(query).all()
            & (jnp.isfinite(passage).all(-1) | ~real).all())
  return out.value, out.metrics | {
      'train/finite': finite & jnp.isfinite(out.value),
      'sources/loss': zeros.at[group].add(replicate(out.per_query)),
      'sources/rows': zeros.at[group].add(here)}


def make_update(model: config.ModelConfig, stage: config.StageConfig, *, seed: int,
                first_step: int = 0, loss: losses.Loss | None = None) -> Update:
  """update(state, batch) -> (new state, metrics); donates the old state.

  `first_step` is the step at which the stage, and its schedule, begins.
  Randomness is a function of (seed, step): a resumed run repeats it exactly.
  `loss` takes the place of the one that stage.loss.name names.
  Metrics hold the learning rate, the gradient's norm before clipping, whole and by
  layer, and, as arrays [source], the sum of its rows' losses and their number.

  An update whose loss, embeddings or gradient's norm are not finite leaves all but
  `step` as it was; 'train/skipped' is then 1.
  """
  schedule = optim.make_schedule(stage.optim, stage.steps)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state: types.TrainState, batch: types.Batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    trained, frozen, tx = _optimizer(state.params, stage)

    def loss_of(trained):
      return loss_and_metrics(optim.join(trained, frozen), batch, model, stage, key,
                              loss, jnp.asarray(state.step - first_step) / stage.steps)

    with precision.scope(model):  # Muon's products as well
      (value, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
      updates, opt_state = tx.update(grads, state.opt_state, trained)
    moved: Any = optax.apply_updates(trained, updates)
    means = state.ema
    if means is not None:
      means = ema.update(means, moved, state.step - first_step + 1,
                         stage.optim.ema_decay)
    norm = optax.tree.norm(grads)
    good = metrics.pop('train/finite') & jnp.isfinite(norm)
    moved, opt_state, means = jax.tree.map(
        functools.partial(jax.lax.select, good), (moved, opt_state, means),
        (trained, state.opt_state, state.ema))
    metrics |= {'train/loss': value, 'train/grad_norm': norm, 'train/skipped': 1 - good,
                'train/lr': schedule(optim.updates_done(state.opt_state)),
                } | optim.norms(grads)
    params = optim.join(moved, frozen)
    return types.TrainState(state.step + 1, params, opt_state, means), metrics

  return update


def _optimizer(params: types.Params, stage: config.StageConfig):
  """(the trained parameters, the frozen ones, the optimiser of those trained)."""
  trained, frozen = optim.split(params, optim.trainable(params, stage.optim))
  return trained, frozen, optim.make_optimizer(stage.optim, stage.steps, trained)


def _embed(params, model, batch: types.Batch, stage: config.StageConfig, key):
  """Queries [Q,E] and passages [C,E].

  Of one length they are one array of rows to the model: one program to compile,
  and chunks that are full.
  """
  if isinstance(batch, types.PackedPairs):
    texts = _encode(params, model, batch.tokens, stage, key)
    return (sharding.local_gather(texts, batch.query),
            sharding.local_gather(texts, batch.passage))
  query, passage = batch.query, batch.passage
  if query.ids.shape[1] == passage.ids.shape[1]:
    rows = _encode(params, model, sharding.concat_local(query, passage), stage, key)
    return sharding.split_local(rows, query.ids.shape[0])
  query_key, passage_key = jax.random.split(key)
  return (_encode(params, model, query, stage, query_key),
          _encode(params, model, passage, stage, passage_key))


def _encode(params, model, tokens, stage: config.StageConfig, key):
  """All rows at once, or within a token budget per device (GradCache)."""
  def encode(params: types.Params, tokens: types.Tokens, key: jax.Array | None):
    return encoder.encode(params, model, tokens, key=key)

  if not stage.token_budget:
    return encode(params, tokens, key)
  return grad_cache.encode_in_chunks(
      encode, params, tokens, token_budget=stage.token_budget, key=key,
      policy=transformer.REMAT[stage.chunk_remat])
