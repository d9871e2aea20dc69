"""Adapters: a start that changes nothing, merging, training only what is chosen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxembed import config, sharding
from jaxembed.config import LoraConfig, ModelConfig, PoolingConfig
from jaxembed.convert import tables
from jaxembed.models import encoder, lora, presets
from jaxembed.train import optim
from jaxembed.types import Tokens

CFG = ModelConfig(
    backbone=presets.tiny('mistral'),
    pooling=PoolingConfig(kind='latent_attention', latents=4, heads=2, head_dim=4),
    lora=LoraConfig(rank=4, alpha=8.0, targets=r'attn/[qv]$|mlp/down$'))


encode = jax.jit(encoder.encode, static_argnums=1)


@pytest.fixture(scope='module')
def tokens():
  ids = np.random.default_rng(0).integers(2, 96, (8, 10)).astype(np.int32)
  ones = np.ones((8, 10), bool)
  return Tokens(ids, ones, ones)


@pytest.fixture(scope='module')
def params():
  return encoder.init_params(CFG, jax.random.key(0))


@pytest.fixture(scope='module')
def busy(params):
  """Adapters that do something."""
  return jax.tree_util.tree_map_with_path(
      lambda path, x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
      if path[-1].key == 'lora_b' else x, params)


def test_a_new_adapter_changes_nothing(params, tokens):
  plain, cfg = lora.merge(params, CFG)
  assert cfg.lora is None
  assert not [p for p in tables.flatten(plain) if 'lora' in p]
  np.testing.assert_array_equal(encode(params, CFG, tokens),
                                encode(plain, cfg, tokens))


def test_only_the_chosen_kernels_are_adapted(params):
  found = {p for p in tables.flatten(params) if p.endswith('lora_a')}
  assert found == {f'backbone/layers/{p}/lora_a'
                   for p in ('attn/q', 'attn/v', 'mlp/down')}
  assert params['backbone']['layers']['attn']['v']['lora_a'].shape == (3, 32, 4)
  assert params['backbone']['layers']['attn']['v']['lora_b'].shape == (3, 4, 16)
  with pytest.raises(ValueError, match=r"'nothing' matches no kernel; there are .*q"):
    lora.targets(params, 'nothing')


def test_merged_equals_unmerged(busy, tokens):
  merged, cfg = lora.merge(busy, CFG)
  want = encode(busy, CFG, tokens)
  # One rounding of each kernel: a few float32 ulp on unit vectors.
  np.testing.assert_allclose(encode(merged, cfg, tokens), want, atol=1e-6)
  before, _ = lora.merge(encoder.init_params(CFG, jax.random.key(0)), CFG)
  assert np.abs(encode(before, cfg, tokens) - want).max() > 1e-3


def test_absent_adapters_are_missed(params, tokens):
  """The configuration says which projections have adapters, not the tree at hand."""
  plain, _ = lora.merge(params, CFG)
  with pytest.raises(Exception, match='lora_a'):
    encoder.hidden_states(plain, CFG, tokens)


@pytest.mark.parametrize('rslora', [False, True])
def test_scale(rslora):
  cfg = LoraConfig(rank=16, alpha=32.0, rslora=rslora)
  assert cfg.scale == (8.0 if rslora else 2.0)


def test_dropout_needs_a_key_and_averages_out(busy, tokens):
  cfg = dataclasses.replace(CFG, lora=dataclasses.replace(CFG.lora, dropout=0.5))
  states = jax.jit(encoder.hidden_states, static_argnums=1)
  still = states(busy, cfg, tokens)
  np.testing.assert_array_equal(still, states(busy, CFG, tokens))
  one = states(busy, cfg, tokens, key=jax.random.key(0))
  two = states(busy, cfg, tokens, key=jax.random.key(1))
  assert np.abs(one - two).max() > 1e-3
  np.testing.assert_array_equal(one, states(busy, cfg, tokens, key=jax.random.key(0)))


def test_training_moves_what_is_trainable_and_nothing_else(params, tokens):
  mask = optim.trainable(params, config.OptimConfig())
  labels = jax.tree.map(lambda t: 'train' if t else 'freeze', mask)
  optimiser = optax.multi_transform(
      {'train': optax.adam(1e-2), 'freeze': optax.set_to_zero()}, labels)

  @jax.jit
  def step(params, state):
    def loss(p):
      v = encoder.encode(p, CFG, tokens)
      return jnp.sum(v[:4] * v[4:])

    updates, state = optimiser.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  new, state = params, optimiser.init(params)
  for _ in range(3):
    new, state = step(new, state)
  flat, chosen = tables.flatten(new), tables.flatten(mask)
  for path, old in tables.flatten(params).items():
    moved = bool(np.any(np.asarray(flat[path]) != np.asarray(old)))
    if not chosen[path]:
      assert not moved, path
    elif path.endswith('lora_b') or path.startswith('pooling/mlp/down'):
      assert moved, path


def test_eight_devices_equal_one(busy, tokens):
  want = encode(busy, CFG, tokens)
  merged, _ = lora.merge(busy, CFG)
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    placed = jax.tree.map(
        lambda x, s: jax.device_put(x, jax.NamedSharding(mesh, s)), busy,
        sharding.param_specs(busy))
    got = encode(placed, CFG, tokens)
    spread = jax.jit(lambda p: lora.merge(p, CFG)[0])(placed)
  np.testing.assert_allclose(got, want, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               spread, merged)
