"""Chunked embedding: the gradient of the whole batch, whatever the chunks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config, losses, sharding, types
from jaxembed.train import grad_cache
from tests.helpers.tiers import thorough

VOCAB, WIDTH, LENGTH, QUERIES, NEGATIVES = 50, 16, 6, 24, 2


def params(seed=0):
  rng = np.random.default_rng(seed)
  def new(*shape):
    return jnp.asarray(rng.normal(size=shape) / 4, jnp.float32)
  return {'embed': new(VOCAB, WIDTH), 'kernel': new(WIDTH, WIDTH),
          'lora_a': new(WIDTH, 2), 'lora_b': new(2, WIDTH)}


def encode(dropout, p, tokens, key):
  """A bag of words through one layer with a low-rank update."""
  out = sharding.spec(sharding.BATCH)
  h = p['embed'].at[tokens.ids].get(out_sharding=out)
  if dropout and key is not None:
    keep = jax.random.bernoulli(key, 1 - dropout, h.shape, out_sharding=out)
    h *= keep / (1 - dropout)
  h = jnp.tanh(h @ p['kernel'] + (h @ p['lora_a']) @ p['lora_b'])
  x = (h * tokens.pool[..., None]).sum(1)
  return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True))


def batch(seed=0):
  rng = np.random.default_rng(seed)
  total = QUERIES * (1 + NEGATIVES)

  def tokens(n):
    mask = np.arange(LENGTH)[None] < rng.integers(1, LENGTH + 1, n)[:, None]
    return types.Tokens(
        ids=rng.integers(0, VOCAB, (n, LENGTH)).astype(np.int32), mask=mask, pool=mask)

  order = rng.permutation(total)
  i32 = functools.partial(np.asarray, dtype=np.int32)
  pairing = types.Pairing(
      owner=i32(np.repeat(np.arange(QUERIES), 1 + NEGATIVES)[order]),
      is_positive=(np.arange(total) % (1 + NEGATIVES) == 0)[order],
      query_id=i32(np.arange(QUERIES) // 2), passage_id=i32(np.arange(total)[order]),
      group=i32(np.arange(QUERIES) % 2), in_batch=np.arange(QUERIES) % 5 != 0)
  return types.PairBatch(query=tokens(QUERIES), passage=tokens(total), pairing=pairing)


def whole(enc, p, tokens, *, token_budget, key):
  """What chunks must equal: plain calls on their rows, no remat, no scan."""
  rows, full, tail = grad_cache.plan(len(tokens.ids), LENGTH, token_budget)
  bounds = [*range(0, full * rows + 1, rows), *([full * rows + tail] if tail else [])]
  parts = []
  for i, (a, b) in enumerate(itertools.pairwise(bounds)):
    part = jax.tree.map(lambda x, a=a, b=b: x[a:b], tokens)
    parts.append(enc(p, part, None if key is None else jax.random.fold_in(key, i)))
  return jnp.concatenate(parts)


def loss(embed, cfg, dropout, key, budget, p, data):
  enc = functools.partial(encode, dropout)
  keys = (None, None) if key is None else jax.random.split(key)
  query = embed(enc, p, data.query, token_budget=budget, key=keys[0])
  passage = embed(enc, p, data.passage, token_budget=budget, key=keys[1])
  return losses.info_nce(query, passage, data.pairing, cfg)[0]


def run(embed, cfg, budget, dropout=0.0, key=None, p=None, data=None):
  fn = functools.partial(loss, embed, cfg, dropout, key, budget)
  return jax.jit(jax.value_and_grad(fn))(p or params(), data or batch())


def same(got, want, rtol=2e-6):
  np.testing.assert_allclose(got[0], want[0], rtol=rtol)
  for name, g in got[1].items():
    assert np.linalg.norm(g - want[1][name]) <= rtol * np.linalg.norm(
        want[1][name]), name


CONFIGS = {
    'gte': {'terms': ('qd', 'qq', 'dd', 'dq'), 'margin': 0.1, 'same_group': True},
    'matryoshka': {'widths': (4, 16), 'width_weights': (1, 2), 'symmetric': True},
    'own': {'negatives': 'own', 'focal_gamma': 0.5, 'hardness': 1.0},
}


@pytest.mark.parametrize('name', [
    'matryoshka', thorough('gte'), thorough('own')])
def test_chunks_do_not_change_the_gradient(name):
  cfg = config.LossConfig(temperature=0.1, **CONFIGS[name])
  want = run(whole, cfg, 1000 * LENGTH)
  for rows in (1, 7):  # 24 and 72 rows: even chunks, and a shorter last one
    # Chunks sum the gradient in another order: a few float32 roundings.
    same(run(grad_cache.encode_in_chunks, cfg, rows * LENGTH), want)


@pytest.mark.thorough
def test_dropout_is_replayed():
  cfg = config.LossConfig(temperature=0.1)
  args = {'budget': 20 * LENGTH, 'dropout': 0.3,
              'key': jax.random.key(3, impl='unsafe_rbg')}
  got = run(grad_cache.encode_in_chunks, cfg, **args)
  same(got, run(whole, cfg, **args))
  other = run(whole, cfg, **args | {'dropout': 0.0})
  assert abs(got[0] - other[0]) > 1e-3  # dropout did something


@pytest.mark.thorough
def test_dropout_gradient_is_the_slope():
  cfg = config.LossConfig(temperature=0.1)
  fn = jax.jit(functools.partial(loss, grad_cache.encode_in_chunks, cfg, 0.3,
                                 jax.random.key(3, impl='unsafe_rbg'), 7 * LENGTH))
  p, data, direction = params(), batch(), params(1)
  slope = sum(jnp.vdot(g, direction[k])
              for k, g in jax.grad(fn)(p, data).items())
  step = 1e-2
  def at(t):
    return fn(jax.tree.map(lambda x, d: x + t * d, p, direction), data)
  # Fourth-order differences: truncation about 1e-4, float32 rounding 1e-5 / step.
  numeric = (8 * (at(step) - at(-step)) - at(2 * step) + at(-2 * step)) / (12 * step)
  np.testing.assert_allclose(slope, numeric, rtol=2e-3)


@pytest.mark.thorough
@pytest.mark.parametrize('mode', ['ring', thorough('gather')])
def test_mesh_equals_one_device(mode):
  cfg = config.LossConfig(temperature=0.1, exchange=mode)
  want = run(grad_cache.encode_in_chunks, cfg, 2 * LENGTH)
  mesh = sharding.make_mesh((4, 2, 1))
  with jax.set_mesh(mesh):
    def place(x):
      return jax.device_put(
            x, jax.NamedSharding(mesh, jax.P(sharding.BATCH, *(None,) * (x.ndim - 1))))
    p = jax.device_put(params(), jax.NamedSharding(mesh, jax.P()))
    got = run(grad_cache.encode_in_chunks, cfg, 2 * LENGTH, p=p,
              data=jax.tree.map(place, batch()))
  same(got, want)


def pairs(n, length, vocab):
  """n queries, each with one positive that shares half of its words."""
  rng = np.random.default_rng(0)

  def tokens(ids):
    return types.Tokens(ids=ids, mask=ids >= 0, pool=ids >= 0)

  query = rng.integers(0, vocab, (n, length)).astype(np.int32)
  passage = rng.integers(0, vocab, (n, length)).astype(np.int32)
  passage[:, ::2] = query[:, ::2]
  i32 = functools.partial(np.asarray, dtype=np.int32)
  pairing = types.Pairing(
      owner=i32(np.arange(n)), is_positive=np.ones(n, bool), query_id=i32(np.arange(n)),
      passage_id=i32(np.arange(n)), group=i32(np.zeros(n)), in_batch=np.ones(n, bool))
  return types.PairBatch(query=tokens(query), passage=tokens(passage), pairing=pairing)


@pytest.mark.slow
def test_64k_pairs_of_minilm_width_train_a_step():
  vocab, width, n = 3000, 384, 1 << 16
  rng = np.random.default_rng(0)
  p = {'embed': jnp.asarray(rng.normal(size=(vocab, width)), jnp.float32),
       'kernel': jnp.eye(width) / width**0.5, 'lora_a': jnp.zeros((width, 2)),
       'lora_b': jnp.zeros((2, width))}
  data = pairs(n, 8, vocab)
  fn = functools.partial(loss, grad_cache.encode_in_chunks, config.LossConfig(), 0.0,
                         None, 4096 * 8)
  step = jax.jit(jax.value_and_grad(fn)).lower(p, data).compile()
  assert step.memory_analysis().temp_size_in_bytes < 4 << 30  # scores alone: 16 GiB
  before, grads = step(p, data)
  # A step against the gradient, as long as the parameters' own scale allows.
  rate = 0.1 / max(float(jnp.abs(g).max()) for g in grads.values())
  after, _ = step(jax.tree.map(lambda x, g: x - rate * g, p, grads), data)
  assert np.isfinite(before) and after < before


def test_activations_of_one_chunk_are_alive():
  cfg = config.LossConfig(tile_bytes=1 << 16)
  n = 4096
  data = pairs(n, 64, VOCAB)

  def temp(budget):
    fn = functools.partial(loss, grad_cache.encode_in_chunks, cfg, 0.0, None, budget)
    compiled = jax.jit(jax.value_and_grad(fn)).lower(params(), data).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # [n, 64, WIDTH] float32 is 16 MiB and several are alive unchunked.
  assert temp(64 * 128) * 4 < temp(64 * n)


def test_budget_below_a_row_is_refused():
  with pytest.raises(ValueError, match='token_budget 5 is less than one row of 6'):
    grad_cache.encode_in_chunks(
        functools.partial(encode, 0.0), params(), batch().query, token_budget=5)


def test_plan_is_even():
  assert grad_cache.plan(10, 8, 32) == (4, 2, 2)
  assert grad_cache.plan(9, 8, 32) == (3, 3, 0)
  assert grad_cache.plan(3, 8, 800) == (3, 1, 0)
