"""Layers that share parameters are the same layers with parameters repeated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import sharding
from jaxembed.config import ModelConfig, PoolingConfig
from jaxembed.models import encoder, presets, training_free
from jaxembed.types import Tokens
from tests.helpers.tiers import thorough

_HEAD = PoolingConfig(kind='layer_attention', latents=4, heads=2, head_dim=8)
CFG = ModelConfig(pooling=_HEAD, backbone=presets.tiny(
    'albert', num_layers=4, own_layers=2))
LOOSE = dataclasses.replace(CFG, backbone=dataclasses.replace(CFG.backbone,
                                                              own_layers=0))
encode = jax.jit(encoder.encode, static_argnums=1)


@pytest.fixture(scope='module')
def params():
  return encoder.init_params(CFG, jax.random.key(0))


def _tokens():
  rng = np.random.default_rng(0)
  mask = np.arange(8)[None] < np.array([8, 5, 3, 1, 8, 2, 7, 6])[:, None]
  return Tokens(rng.integers(2, 96, (8, 8)).astype(np.int32), mask, mask)


def _loose(params):
  layers = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0),
                        params['backbone']['layers'])
  return {**params, 'backbone': {**params['backbone'], 'layers': layers}}


def _gradients(params, cfg):
  def loss(params):
    weight = jnp.arange(1.0, 1 + cfg.embedding_dim)
    return (encoder.encode(params, cfg, _tokens()) * weight).sum()

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize('remat', ['full', thorough('none')])
def test_vectors_and_gradients(params, remat):
  """The vector of every layer is pooled, so each pass counts."""
  cfg, loose = (dataclasses.replace(c, remat=remat) for c in (CFG, LOOSE))
  np.testing.assert_allclose(encode(params, cfg, _tokens()),
                             encode(_loose(params), loose, _tokens()), atol=2e-6)
  if remat == 'none':
    return
  want = _gradients(_loose(params), loose)['backbone']['layers']
  got = _gradients(params, cfg)['backbone']['layers']
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(got))
  jax.tree.map(lambda g, w: np.testing.assert_allclose(
      g, w.reshape(2, 2, *w.shape[1:]).sum(1), atol=1e-5 * scale), got, want)


def test_on_a_mesh(params):
  want = encode(params, CFG, _tokens())
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    got = encode(sharding.place(params, mesh), CFG, sharding.to_global(mesh, _tokens()))
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_an_earlier_layer(params):
  cfg = dataclasses.replace(CFG, pooling=PoolingConfig())
  loose = dataclasses.replace(LOOSE, pooling=PoolingConfig())
  backbone = {'backbone': params['backbone']}
  got = training_free.at_layer(backbone, cfg, 2)
  want = training_free.at_layer(_loose(backbone), loose, 2)
  np.testing.assert_allclose(encode(*got, _tokens()), encode(*want, _tokens()),
                             atol=2e-6)
  with pytest.raises(ValueError, match='share their parameters; .* a multiple of 2'):
    training_free.at_layer(backbone, cfg, 3)
