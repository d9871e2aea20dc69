"""Mixtures of experts against a loop over tokens, and over devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import sharding
from jaxembed.config import LoraConfig, ModelConfig
from jaxembed.convert import tables
from jaxembed.models import encoder, experts, lora, presets
from jaxembed.types import Tokens

TOKENS, DIM, WIDTH, COUNT, USED = 7, 6, 5, 4, 2


def _draw(seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((TOKENS, DIM), (DIM, COUNT), (COUNT, DIM, WIDTH), (COUNT, DIM, WIDTH),
            (COUNT, WIDTH, DIM))
  return [rng.normal(size=s) for s in shapes]


def _loop(x, router, gate, up, down, normed):
  """One token and one expert at a time, in float64."""
  out = np.zeros_like(x)
  for n, row in enumerate(x):
    share = np.exp(row @ router)
    share /= share.sum()
    best = np.argsort(-share)[:USED]
    total = share[best].sum() if normed else 1.0
    for e in best:
      g = row @ gate[e]
      out[n] += share[e] / total * ((g / (1 + np.exp(-g)) * (row @ up[e])) @ down[e])
  return out


@pytest.mark.parametrize('normed', [True, False])
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_a_token_gets_its_experts_and_no_other(monkeypatch, platform, normed):
  """Both ways to compute them, and their gradients' sums, are those of the loop."""
  monkeypatch.setattr(experts.dispatch, 'platform', lambda: platform)
  x, router, gate, up, down = _draw()
  cfg = dataclasses.replace(
      presets.tiny('mixtral'), dim=DIM, ff_dim=WIDTH, experts=COUNT,
      experts_used=USED, experts_normed=normed)
  params = {'router_kernel': router, 'gate_kernel': gate, 'up_kernel': up,
            'down_kernel': down}
  params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
  with jax.default_matmul_precision('highest'):
    got = experts.Experts(cfg).apply(
        {'params': params}, jnp.asarray(x, jnp.float32)[None])
    np.testing.assert_allclose(got[0], _loop(x, router, gate, up, down, normed),
                               rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 2, 2, 2)])
def test_experts_over_devices_equal_one(shape):
  """Their width lies over 'tensor': vectors and all gradients are the same."""
  cfg = ModelConfig(backbone=presets.tiny('qwen3_moe', num_layers=2))
  params = encoder.init_params(cfg, jax.random.key(0))
  rng = np.random.default_rng(0)
  ids = rng.integers(2, 96, (4, 8)).astype(np.int32)
  mask = np.arange(8)[None] < np.array([8, 3, 5, 1])[:, None]
  tokens = Tokens(ids=ids, mask=mask, pool=mask)

  def loss(params, tokens):
    v = encoder.encode(params, cfg, tokens)
    return jnp.sum(v * jnp.arange(v.shape[1])), v

  step = jax.jit(jax.grad(loss, has_aux=True))
  grads, vectors = step(params, tokens)
  assert float(jnp.abs(grads['backbone']['layers']['mlp']['router_kernel']).max()) > 0
  mesh = sharding.make_mesh(shape, jax.devices()[:int(np.prod(shape))])
  with jax.set_mesh(mesh):
    sharded, split = step(sharding.place(params, mesh), tokens)
  np.testing.assert_allclose(split, vectors, atol=3e-6)
  for path, want in tables.flatten(grads).items():
    np.testing.assert_allclose(tables.flatten(sharded)[path], want, err_msg=path,
                               atol=2e-5 * (1 + np.abs(want).max()))


def test_an_adapter_of_experts_is_refused():
  params = encoder.param_shapes(ModelConfig(backbone=presets.tiny('mixtral')))
  with pytest.raises(ValueError, match='matches no kernel; there are .*attn/v'):
    lora.add(params, LoraConfig(targets=r'mlp/'), jax.random.key(0))
