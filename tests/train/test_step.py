"""One update is the same update on any mesh, at any dtype of metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config, sharding, types
from jaxembed.models import encoder, presets
from jaxembed.train import step

Q, G = 16, 2
STAGE = config.StageConfig(
    steps=10, loss=config.LossConfig(temperature=0.1),
    optim=config.OptimConfig(peak_lr=1e-3, warmup_steps=2))


def _model(pooling):
  return config.ModelConfig(
      backbone=dataclasses.replace(presets.tiny('mistral'), vocab_size=100),
      pooling=config.PoolingConfig(
          kind=pooling, latents=8, heads=2, head_dim=8, ff_mult=2))


def _tokens(rng, n, t):
  mask = np.arange(t) < rng.integers(2, t + 1, (n, 1))
  return types.Tokens(rng.integers(1, 100, (n, t)).astype(np.int32), mask, mask)


def _batches(count):
  rng = np.random.default_rng(0)
  pairing = types.Pairing(
      owner=np.repeat(np.arange(Q, dtype=np.int32), G),
      is_positive=np.tile([True, False], Q), query_id=np.arange(Q, dtype=np.int32),
      passage_id=100 + np.arange(Q * G, dtype=np.int32),
      group=np.zeros(Q, np.int32), in_batch=np.ones(Q, bool))
  return [types.PairBatch(_tokens(rng, Q, 8), _tokens(rng, Q * G, 12), pairing)
          for _ in range(count)]


def _curve(model, shape, steps=10):
  """Losses of a few updates on a mesh of `shape`."""
  mesh = sharding.make_mesh(shape, jax.devices()[:int(np.prod(shape))])
  with jax.set_mesh(mesh):
    params = encoder.init_params(model, jax.random.key(1))
    state = step.init_state(params, STAGE)
    update = step.make_update(model, STAGE, seed=0)
    losses = []
    for batch in _batches(steps):
      state, metrics = update(state, sharding.rows(mesh, batch))
      losses.append(float(metrics['train/loss']))
  return np.array(losses), state


# Ten updates let float32 rounding grow; the bound is the project's.
@pytest.mark.parametrize('pooling, shapes', [
    ('latent_attention', [(8, 1, 1), (2, 2, 2)]), ('mean', [(4, 2, 1)])])
def test_one_device_equals_eight(pooling, shapes):
  model = _model(pooling)
  alone, state = _curve(model, (1, 1, 1))
  assert int(state.step) == 10
  assert alone[-1] != alone[0]
  for shape in shapes:
    spread, _ = _curve(model, shape)
    np.testing.assert_allclose(spread, alone, atol=1e-5, rtol=1e-5)


def test_training_learns_one_batch_by_heart():
  model = _model('mean')
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    params = encoder.init_params(model, jax.random.key(1))
    stage = dataclasses.replace(STAGE, steps=40, optim=config.OptimConfig(
        peak_lr=3e-3, warmup_steps=2))
    state, update = step.init_state(params, stage), step.make_update(
        model, stage, seed=0)
    batch = sharding.rows(mesh, _batches(1)[0])
    state, first = update(state, batch)
    for _ in range(39):
      state, metrics = update(state, batch)
  assert metrics['train/loss'] < 0.2 * first['train/loss']
  assert metrics['loss/accuracy@1'] == 1.0
  np.testing.assert_allclose(first['train/lr'], 1.5e-3, rtol=1e-6)


def test_a_batch_that_does_not_divide_the_mesh_names_sizes_that_do():
  mesh = sharding.make_mesh((8, 1, 1))
  with pytest.raises(ValueError, match='12 rows .* 8 devices .* use 8 or 16'):
    sharding.rows(mesh, jnp.zeros((12, 3)))
