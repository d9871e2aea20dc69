"""Latents that attend to states: against float64 loops, masks, five designs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import sharding
from jaxembed.config import PoolingConfig
from jaxembed.pooling import layer_attention

DIM, LAYERS = 8, 3


def _config(reads):
  return PoolingConfig(kind='layer_attention', reads=reads, latents=5, heads=2,
                       head_dim=4)


def _inputs(reads, rows=3):
  rng = np.random.default_rng(0)
  cfg = _config(reads)
  params = layer_attention.init(cfg, DIM, LAYERS, jax.random.key(0))
  params = jax.tree.map(  # nothing stays at 0 or 1
      lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)
  hidden = rng.normal(size=(rows, 6, DIM)).astype(np.float32)
  pool = np.arange(6) < np.array([6, 2, 4, 1, 3, 5, 6, 2])[:rows, None]
  kept = rng.normal(size=(LAYERS, rows, DIM)).astype(np.float32)
  return cfg, params, hidden, kept if layer_attention.per_layer(cfg) else None, pool


def _loop(p, x):
  """One row in float64.  x [S,D] -> [D]."""
  p = jax.tree.map(lambda v: np.asarray(v, np.float64), p)

  def norm(q, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * q['scale'] + q['bias']

  z, x = p['latents'], norm(p['norm'], x)
  y = z.copy()
  for h in range(2):
    q = norm(p['norm_context'], z) @ p['q']['kernel'][:, h]
    k, v = x @ p['k']['kernel'][:, h], x @ p['v']['kernel'][:, h]
    scores = np.exp(q @ k.T / math.sqrt(4))
    y += (scores / scores.sum(1, keepdims=True)) @ v @ p['out']['kernel'][h]
  u = norm(p['mlp_norm'], y)
  lin = {n: p['mlp'][n] for n in ('up', 'gate', 'down')}
  gate = u @ lin['gate']['kernel'] + lin['gate']['bias']
  erf = np.vectorize(math.erf)
  gate = gate * 0.5 * (1 + erf(gate / math.sqrt(2)))
  inner = (u @ lin['up']['kernel'] + lin['up']['bias']) * gate
  return (y + inner @ lin['down']['kernel'] + lin['down']['bias']).mean(0)


@pytest.mark.parametrize(
    'reads', ['last_token', 'tokens', 'layers_last', 'layers_mean'])
def test_matches_a_loop(reads):
  cfg, params, hidden, kept, pool = _inputs(reads)
  got = jax.jit(layer_attention.apply, static_argnums=1)(
      params, cfg, hidden, kept, pool)
  for i in range(3):
    if kept is not None:
      x = kept[:, i] + np.asarray(params['layer'])
    else:
      x = hidden[i][pool[i]]
      x = x[-1:] if reads == 'last_token' else x
    # float32 against float64 through a dozen sums of numbers of size 1.
    np.testing.assert_allclose(got[i], _loop(params, x.astype(np.float64)), atol=2e-5)


def test_eight_devices_equal_one():
  cfg, params, hidden, kept, pool = _inputs('layers_mean', rows=8)
  run = jax.jit(layer_attention.apply, static_argnums=1)
  want = run(params, cfg, hidden, kept, pool)
  mesh = sharding.make_mesh((2, 2, 2))
  tree = {'pooling': params}
  with jax.set_mesh(mesh):
    placed = jax.tree.map(
        lambda x, s: jax.device_put(x, jax.NamedSharding(mesh, s)), tree,
        sharding.param_specs(tree))['pooling']

    def rows(x, *axes):
      return jax.device_put(jnp.asarray(x), jax.NamedSharding(mesh, jax.P(*axes)))

    got = run(placed, cfg, rows(hidden, sharding.BATCH),
              rows(kept, None, sharding.BATCH), rows(pool, sharding.BATCH))
  np.testing.assert_allclose(got, want, atol=1e-5)
