"""One update is the same update on any mesh, at any dtype of metrics."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config, sharding
from jaxembed.models import encoder, transformer
from jaxembed.train import grad_cache, step

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny_step


# Ten updates let float32 rounding grow: hence 1e-5, not a few ulp.
@pytest.mark.parametrize('pooling, shapes', [
    ('latent_attention', [(2, 2, 2)]), ('mean', [(4, 2, 1)]),
    pytest.param('latent_attention', [(8, 1, 1)], marks=pytest.mark.slow)])
def test_one_device_equals_eight(pooling, shapes):
  args = tiny_step.model(pooling), tiny_step.STAGE
  data = tiny_step.batches(10)
  alone, state = tiny_step.curve(*args, (1, 1, 1), data)
  assert int(state.step) == 10
  assert alone[-1] != alone[0]
  for shape in shapes:
    spread, _ = tiny_step.curve(*args, shape, data)
    np.testing.assert_allclose(spread, alone, atol=1e-5, rtol=1e-5)


# No chunks, chunks of two rows, and of one.
@pytest.mark.parametrize('pooling,shape,chunks', [
    ('last', (1, 1, 1), {}),
    pytest.param('latent_attention', (2, 2, 2), {'token_budget': 48},
                 marks=pytest.mark.slow),
    ('latent_attention', (2, 2, 2), {'token_budget': 24, 'chunk_remat': 'dots'}),
    ('mean', (4, 2, 1), {'token_budget': 24, 'chunk_remat': 'residual'})])
def test_packing_changes_no_update(pooling, shape, chunks):
  model = tiny_step.model(pooling)
  stage = dataclasses.replace(tiny_step.STAGE, **chunks)
  steps = tiny_step.batches(6, negatives=3)
  shards = shape[0] * shape[1]
  shared = [tiny_step.packed(b, shards, 24) for b in steps]
  assert len(shared[0].tokens.ids) < 0.7 * tiny_step.Q * 5
  want, _ = tiny_step.curve(model, tiny_step.STAGE, (1, 1, 1), steps)
  got, _ = tiny_step.curve(model, stage, shape, shared)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_a_chunk_that_keeps_its_sums_computes_less_again():
  model = tiny_step.model()
  params, tokens = encoder.init_params(model, jax.random.key(1)), (
      tiny_step.batches(1)[0].passage)

  def spent(remat):
    def total(params):
      return grad_cache.encode_in_chunks(
          lambda p, t, key: encoder.encode(p, model, t, key=key), params, tokens,
          token_budget=4 * 12, policy=transformer.REMAT[remat])[:, 0].sum()

    step = jax.jit(jax.value_and_grad(total)).lower(params).compile()
    return step.cost_analysis()['flops']

  assert spent('dots') < spent('residual') < spent('full')


@pytest.mark.slow
def test_the_whole_recipe_is_the_same_on_any_mesh():
  """Adapters, chunks, hard negatives, both directions: 20 steps, four meshes."""
  model = tiny_step.model(
      'latent_attention', lora=config.LoraConfig(rank=4, alpha=8.0))
  stage = dataclasses.replace(
      tiny_step.STAGE, steps=20, token_budget=4 * 12,
      loss=config.LossConfig(temperature=0.1, symmetric=True),
      optim=config.OptimConfig(peak_lr=1e-3, warmup_steps=2))
  data = tiny_step.batches(20, negatives=3)
  alone, state = tiny_step.curve(model, stage, (1, 1, 1), data)
  assert np.any(state.params['backbone']['layers']['attn']['q']['lora_b'])
  assert np.ptp(alone) > 0.1
  for shape in ((8, 1, 1), (4, 2, 1), (2, 2, 2)):
    spread, _ = tiny_step.curve(model, stage, shape, data)
    np.testing.assert_allclose(spread, alone, atol=1e-5, rtol=0, err_msg=str(shape))


def test_training_learns_one_batch_by_heart():
  model, mesh = tiny_step.model(), tiny_step.mesh((1, 1, 1))
  with jax.set_mesh(mesh):
    params = encoder.init_params(model, jax.random.key(1))
    stage = dataclasses.replace(tiny_step.STAGE, steps=40, optim=config.OptimConfig(
        peak_lr=3e-3, warmup_steps=2))
    state, update = step.init_state(params, stage), step.make_update(
        model, stage, seed=0)
    batch = sharding.to_global(mesh, tiny_step.batches(1)[0])
    state, first = update(state, batch)
    for _ in range(39):
      state, metrics = update(state, batch)
  assert metrics['train/loss'] < 0.2 * first['train/loss']
  assert metrics['loss/accuracy@1'] == 1.0
  np.testing.assert_allclose(first['train/lr'], 1.5e-3, rtol=1e-6)


def test_a_batch_that_does_not_divide_the_mesh_names_sizes_that_do():
  mesh = sharding.make_mesh((8, 1, 1))
  with pytest.raises(ValueError, match='12 rows .* 8 devices .* use 8 or 16'):
    sharding.to_global(mesh, jnp.zeros((12, 3)))
