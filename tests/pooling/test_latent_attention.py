"""The head as a pooler: its start, its golden outputs, its edge cases."""


import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from jaxembed import config, sharding
from jaxembed.kernels.latent_pool import reference
from jaxembed.pooling import latent_attention
from jaxembed.sharding import BATCH
from tests.helpers.tiers import after

CFG = config.PoolingConfig(
    kind='latent_attention', latents=5, heads=2, head_dim=6, ff_mult=4)


def states(key, rows=3, length=7, dim=16):
  hidden = jax.random.normal(jax.random.key(key), (rows, length, dim))
  pool = np.arange(length) < np.array([[length], [3], [1]])
  return hidden, jnp.asarray(pool[:rows])


def released_params(tensors):
  """The published names, split and transposed by hand."""
  def get(name):
    return tensors['latent_attention_model.' + name].astype(np.float32)

  def norm(name):
    return {'scale': get(name + '.weight'), 'bias': get(name + '.bias')}

  def linear(weight, bias):
    return {'kernel': weight.T, 'bias': bias}

  def heads(weight):  # [N*H,D] -> [D,N,H]
    return {'kernel': weight.T.reshape(64, 2, 48)}

  attend, mlp = 'cross_attend_blocks.0.', 'cross_attend_blocks.1.'
  k, v = np.split(get(attend + 'fn.to_kv.weight'), 2)
  up, gate = np.split(get(mlp + 'fn.net.0.weight'), 2)
  up_bias, gate_bias = np.split(get(mlp + 'fn.net.0.bias'), 2)
  return {
      'latents': get('latents'),
      'norm': norm(attend + 'norm'),
      'norm_context': norm(attend + 'norm_context'),
      'q': heads(get(attend + 'fn.to_q.weight')),
      'k': heads(k),
      'v': heads(v),
      'out': {'kernel': get(attend + 'fn.to_out.weight').T.reshape(2, 48, 64)},
      'mlp_norm': norm(mlp + 'norm'),
      'mlp': {
          'up': linear(up, up_bias),
          'gate': linear(gate, gate_bias),
          'down': linear(get(mlp + 'fn.net.2.weight'), get(mlp + 'fn.net.2.bias')),
      },
  }


def test_new_head_is_mean_pooling():
  hidden, pool = states(0)
  params = latent_attention.init(CFG, 16, jax.random.key(1))
  got = latent_attention.apply(params, CFG, hidden, pool)
  want = [np.asarray(h)[np.asarray(p)].mean(0) for h, p in zip(hidden, pool)]
  # Both are float32 means of at most seven numbers below 4: a few roundings.
  np.testing.assert_allclose(got, np.stack(want), atol=1e-6, rtol=0)


def test_new_head_leaves_tokens_untouched():
  hidden, _ = states(0)
  params = latent_attention.init(CFG, 16, jax.random.key(1))
  np.testing.assert_array_equal(
      reference.tokens(params, hidden), hidden)


def test_head_dim_zero_means_the_model_width():
  cfg = config.PoolingConfig(
      kind='latent_attention', latents=5, heads=2, head_dim=0, ff_mult=4)
  params = latent_attention.init(cfg, 16, jax.random.key(1))
  assert params['q']['kernel'].shape == (16, 2, 16)
  assert params['out']['kernel'].shape == (2, 16, 16)


@pytest.mark.parametrize('case', after(1, range(4)))
def test_published_head(shared_fixtures, case):
  """Golden arrays of the publisher's code, float32, head 48 wide on 64/2."""
  numpy_io = pytest.importorskip('safetensors.numpy')
  folder = shared_fixtures / 'nv_embed_tiny'
  params = released_params(numpy_io.load_file(folder / 'model.safetensors'))
  golden = numpy_io.load_file(folder / 'golden.safetensors')
  cfg = config.PoolingConfig(
      kind='latent_attention', latents=16, heads=2, head_dim=48)
  hidden = golden[f'{case}/hidden']
  # float32 on both sides; states reach 12, so 2e-5 is 2e-6 of the scale.
  np.testing.assert_allclose(
      reference.tokens(params, hidden),
      golden[f'{case}/latent_tokens'], atol=2e-5, rtol=0)
  pooled = latent_attention.apply(
      params, cfg, hidden, golden[f'{case}/pool_mask'] == 1)
  unit = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
  np.testing.assert_allclose(unit, golden[f'{case}/embeddings'], atol=1e-6, rtol=0)


SHARDED = config.PoolingConfig(
    kind='latent_attention', latents=8, heads=4, head_dim=6, ff_mult=2)


def random_params(cfg, dim):
  """`init` with every leaf moved, so that nothing is zero."""
  leaves, tree = jax.tree.flatten(latent_attention.init(cfg, dim, jax.random.key(0)))
  return tree.unflatten([
      x + 0.2 * jax.random.normal(jax.random.key(i), x.shape)
      for i, x in enumerate(leaves)])


@pytest.mark.parametrize('shape,impl', after(1, [
    ((2, 2, 2), 'blockwise'), ((8, 1, 1), 'blockwise'), ((1, 4, 2), 'blockwise'),
    ((2, 2, 2), 'reference')]), ids=str)
def test_eight_devices_are_one(shape, impl):
  """Values, gradients and their layout under an Explicit mesh."""
  params = {'pooling': random_params(SHARDED, 16)}
  hidden = jax.random.normal(jax.random.key(1), (8, 7, 16))
  pool = jax.random.bernoulli(jax.random.key(2), 0.7, (8, 7))
  cotangent = jax.random.normal(jax.random.key(3), (8, 16))

  def loss(params, hidden, pool, cotangent):
    out = latent_attention.apply(
        params['pooling'], SHARDED, hidden, pool, impl=impl)
    return jnp.sum(out * cotangent)

  step = jax.jit(jax.value_and_grad(loss, (0, 1)))
  args = params, hidden, pool, cotangent
  want = step(*args)
  mesh = sharding.make_mesh(shape)
  with jax.set_mesh(mesh):
    layout = sharding.param_specs(params)
    rows = [P(BATCH, *(None,) * (x.ndim - 1)) for x in args[1:]]
    placed = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)),
                          args, (layout, *rows))
    got = step(*placed)
  # float32, sums split over devices: a few roundings of the largest entry.
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=0, atol=5e-6 * np.abs(y).max()), got, want)
  jax.tree.map(lambda g, p: np.testing.assert_equal(
      g.sharding.is_equivalent_to(p.sharding, g.ndim), True), got[1][0], placed[0])


def test_packed_rows_on_eight_devices():
  params = random_params(SHARDED, 16)
  hidden = jax.random.normal(jax.random.key(1), (8, 7, 16))
  segments = jnp.sort(jax.random.randint(jax.random.key(2), (8, 7), -1, 3), axis=1)
  pack = jax.jit(lambda params, hidden, segments: latent_attention.apply_packed(
      params, SHARDED, hidden, segments, 3))
  want = pack(params, hidden, segments)
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    placed = jax.tree.map(
        lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), {'pooling': params},
        sharding.param_specs({'pooling': params}))['pooling']
    hidden, segments = (
        jax.device_put(x, NamedSharding(mesh, P(BATCH))) for x in (hidden, segments))
    for head in (placed, jax.jit(latent_attention.fold)(placed)):
      np.testing.assert_allclose(pack(head, hidden, segments), want, atol=1e-5)
