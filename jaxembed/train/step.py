"""The one jitted training function."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import optax

from jaxembed import config, losses, types
from jaxembed.models import encoder
from jaxembed.train import optim

Update = Callable[[types.TrainState, types.PairBatch],
                  tuple[types.TrainState, types.Metrics]]


def init_state(params: types.Params, tx: optax.GradientTransformation,
               step: int = 0) -> types.TrainState:
  """A state about to make update `step` + 1; moments are sharded like params."""
  return types.TrainState(
      jnp.asarray(step, jnp.int32), params, jax.jit(tx.init)(params))


def loss_and_metrics(params: types.Params, batch: types.PairBatch,
                     model: config.ModelConfig, loss: config.LossConfig, key
                     ) -> tuple[jax.Array, types.Metrics]:
  """([] float32, metrics) of a global batch; `key` drives dropout alone."""
  query_key, passage_key = jax.random.split(key)
  query = encoder.encode(params, model, batch.query, key=query_key)
  passage = encoder.encode(params, model, batch.passage, key=passage_key)
  return losses.info_nce(query, passage, batch.pairing, loss)


def make_update(model: config.ModelConfig, stage: config.StageConfig,
                tx: optax.GradientTransformation, *, seed: int, first_step: int = 0
                ) -> Update:
  """update(state, batch) -> (new state, metrics); donates the old state.

  `first_step` is the step at which the stage, and its schedule, begins.
  Randomness is a function of (seed, step): a resumed run repeats it exactly.
  Metrics hold the learning rate and the gradient's global norm before clipping.
  """
  schedule = optim.make_schedule(stage.optim, stage.steps)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state: types.TrainState, batch: types.PairBatch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    (loss, metrics), grads = jax.value_and_grad(
        loss_and_metrics, has_aux=True)(
            state.params, batch, model, stage.loss, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {'train/loss': loss, 'train/grad_norm': optax.tree.norm(grads),
                'train/lr': schedule(state.step - first_step)}
    return types.TrainState(state.step + 1, params, opt_state), metrics

  return update
