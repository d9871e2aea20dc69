"""One update is the same update on any mesh, at any dtype of metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config, losses, sharding
from jaxembed.losses import masks
from jaxembed.models import encoder, transformer
from jaxembed.train import grad_cache, step
from tests.helpers import tiny_step
from tests.helpers.tiers import thorough


# Ten updates let float32 rounding grow: hence 1e-5, not a few ulp.
@pytest.mark.parametrize('pooling, shapes', [
    ('last', [(2, 2, 2)]), thorough('mean', [(4, 2, 1)]),
    thorough('latent_attention', [(2, 2, 2), (8, 1, 1)])])
def test_one_device_equals_eight(pooling, shapes):
  args = tiny_step.model(pooling), tiny_step.STAGE
  data = tiny_step.batches(10, negatives=3)
  alone, state = tiny_step.curve(*args, (1, 1, 1), data)
  assert int(state.step) == 10
  assert alone[-1] != alone[0]
  for shape in shapes:
    spread, _ = tiny_step.curve(*args, shape, data)
    np.testing.assert_allclose(spread, alone, atol=1e-5, rtol=1e-5)


# No chunks, chunks of two rows, and of one.
@pytest.mark.parametrize('pooling,shape,chunks', [
    ('last', (1, 1, 1), {}),
    thorough('latent_attention', (2, 2, 2), {'token_budget': 48}),
    thorough('latent_attention', (2, 2, 2),
             {'token_budget': 24, 'chunk_remat': 'dots'}),
    thorough('mean', (4, 2, 1), {'token_budget': 24, 'chunk_remat': 'residual'})])
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


@jax.custom_vjp
def _zero(x, slope):
  """0, with a gradient of `slope` in x, be it NaN."""
  return jnp.zeros(())


_zero.defvjp(lambda x, slope: (jnp.zeros(()), (x, slope)),
             lambda kept, g: (jnp.full_like(kept[0], g * kept[1]), None))


@pytest.mark.parametrize('name, shape, bad', [
    ('adamw', (4, 2, 1), 'gradient'), thorough('muon', (1, 1, 1), 'gradient'),
    thorough('adafactor', (1, 1, 1), 'loss')])
def test_an_update_that_is_not_finite_leaves_the_state_as_it_was(name, shape, bad):
  model, where = tiny_step.model(), tiny_step.mesh(shape)
  stage = dataclasses.replace(tiny_step.STAGE, optim=config.OptimConfig(
      name=name, peak_lr=1e-2, warmup_steps=2, ema_decay=0.9))

  def loss(query, passage, pairing, cfg, params):
    """InfoNCE but in batches whose first query has the id 77."""
    out = losses.LOSSES['info_nce'](query, passage, pairing, cfg, params)
    wrong = jnp.where(masks.replicate(pairing.query_id)[0] == 77, jnp.nan, 0.0)
    more = wrong if bad == 'loss' else _zero(out.value, wrong)
    return out._replace(value=out.value + more)

  with jax.set_mesh(where):
    host = tiny_step.batches(2)
    ids = np.where(np.arange(tiny_step.Q) == 0, 77, host[0].pairing.query_id)
    poisoned = dataclasses.replace(host[0], pairing=dataclasses.replace(
        host[0].pairing, query_id=ids.astype(np.int32)))
    first, second, poisoned = (
        sharding.to_global(where, b) for b in (*host, poisoned))
    update = step.make_update(model, stage, seed=0, loss=loss)
    state = step.init_state(encoder.init_params(model, jax.random.key(1)), stage)
    state, metrics = update(state, first)
    assert metrics['train/skipped'] == 0
    before = jax.tree.map(np.asarray, state)
    state, metrics = update(state, poisoned)
    assert metrics['train/skipped'] == 1 and int(state.step) == 2
    assert np.isfinite(metrics['train/loss']) == (bad != 'loss')
    for part in ('params', 'opt_state', 'ema'):
      jax.tree.map(np.testing.assert_array_equal, getattr(state, part),
                   getattr(before, part))
    state, metrics = update(state, second)
    assert metrics['train/skipped'] == 0
    assert float(metrics['train/lr']) == pytest.approx(1e-2)  # its second, not third
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.thorough
def test_a_text_whose_embedding_is_not_finite_is_noticed_whatever_the_loss_says():
  model, batch = tiny_step.model(), tiny_step.batches(1)[0]
  params = encoder.init_params(model, jax.random.key(1))
  token = batch.passage.ids[3, 0]
  table = params['backbone']['embed']['token'].at[token].set(jnp.inf)
  ruined = params | {'backbone': params['backbone'] | {'embed': {'token': table}}}
  blind = lambda query, passage, pairing, cfg, params: losses.Result(
      jnp.zeros(()), jnp.zeros(len(query)), {})

  def finite(params, batch):
    _, metrics = step.loss_and_metrics(
        params, batch, model, tiny_step.STAGE, jax.random.key(0), blind)
    return bool(metrics['train/finite'])

  stray = dataclasses.replace(batch, pairing=dataclasses.replace(
      batch.pairing, owner=np.full_like(batch.pairing.owner, -1)))
  hidden = dataclasses.replace(stray, query=dataclasses.replace(
      batch.query, ids=np.where(batch.query.ids == token, token - 1, batch.query.ids)))
  assert finite(params, batch) and not finite(ruined, batch)
  assert finite(ruined, hidden)  # places that no row fills do not count


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
