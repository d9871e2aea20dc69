"""The latent-attention head: the published form, and every faster one beside it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed.kernels import dispatch
from jaxembed.kernels.latent_pool import (
  api,
  fold_latents,
  gpu,
  latent_pool,
  latent_pool_packed,
  reference,
  tpu,
)
from tests.helpers.latent_heads import (
  Shape,
  distance,
  make_params,
  make_states,
  value_and_grads,
)
from tests.helpers.tiers import after


def numpy_head(params, state):
  """One token through the head: loops over heads and latents, float64."""
  p = jax.tree.map(np.float64, params)

  def norm(which, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * which['scale'] + which['bias']

  x = np.float64(state)
  out = x.copy()
  for n in range(p['q']['kernel'].shape[1]):
    query = norm(p['norm'], x) @ p['q']['kernel'][:, n]
    context = [norm(p['norm_context'], latent) for latent in p['latents']]
    keys = [c @ p['k']['kernel'][:, n] for c in context]
    values = [c @ p['v']['kernel'][:, n] for c in context]
    scores = np.exp([query @ k / math.sqrt(len(query)) for k in keys])
    mixed = sum(s * v for s, v in zip(scores / scores.sum(), values))
    out += mixed @ p['out']['kernel'][n]
  y, mlp = norm(p['mlp_norm'], out), p['mlp']
  up = y @ mlp['up']['kernel'] + mlp['up']['bias']
  gate = y @ mlp['gate']['kernel'] + mlp['gate']['bias']
  gelu = np.array([g * 0.5 * (1 + math.erf(g / math.sqrt(2))) for g in gate])
  return out + (up * gelu) @ mlp['down']['kernel'] + mlp['down']['bias']


def test_reference_is_the_head_written_out():
  with jax.enable_x64(True):
    params = make_params(dtype=np.float64)
    hidden, pool, _ = make_states(2, 4, 16, dtype=np.float64)
    pool = (pool == 0).at[0].set(True)
    got = reference.latent_pool(params, hidden, pool)
    # The published order: softmax(q k^T / sqrt(H)) v, GEGLU with the erf.
    want = np.mean([numpy_head(params, h) for h in hidden[0]], axis=0)
    np.testing.assert_allclose(got[0], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('segments, token_block', after(2, [
    (4, 18), (1, 0), (1, 18), (1, 40), (4, 0), (4, 40)]))
def test_folded_is_unfolded(segments, token_block):
  """Exact identities: float64, values and every gradient, to rounding."""
  with jax.enable_x64(True):
    params = make_params(dtype=np.float64)
    hidden, marks, cotangent = make_states(5, 9, 16, segments, np.float64)
    run = functools.partial(latent_pool_packed, segments=marks,
                            num_segments=segments)
    want = value_and_grads(
        functools.partial(run, impl='reference'), params, hidden, cotangent)
    got = value_and_grads(
        functools.partial(run, impl='blockwise', token_block=token_block),
        params, hidden, cotangent)
    assert distance(got, want) < 1e-12


@pytest.mark.parametrize('shape', after(1, [
    Shape(width=31, latents=65, inner=7), Shape(latents=1, heads=1),
    Shape(dim=384, heads=4, width=8, inner=32)]), ids=str)
def test_every_width(shape):
  with jax.enable_x64(True):
    params = make_params(shape, np.float64)
    hidden, marks, cotangent = make_states(3, 5, shape.dim, 2, np.float64)
    run = functools.partial(latent_pool_packed, segments=marks, num_segments=2)
    want, got = (value_and_grads(functools.partial(run, impl=impl), params, hidden,
                                 cotangent) for impl in ('reference', 'blockwise'))
    assert distance(got, want) < 1e-12


def test_gradient_is_the_slope():
  """Central differences in float64: step 1e-5 leaves errors near 1e-9."""
  with jax.enable_x64(True):
    params = make_params(dtype=np.float64)
    hidden, marks, cotangent = make_states(2, 5, 16, dtype=np.float64)
    point = params, hidden
    rng = np.random.default_rng(2)
    way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), point)

    @jax.jit
    def loss(point):
      return jnp.sum(latent_pool(*point, marks == 0) * cotangent[:, 0])

    def along(step):
      return loss(jax.tree.map(lambda x, d: x + step * d, point, way))

    slope = sum(jax.tree.leaves(jax.tree.map(
        lambda g, d: jnp.sum(g * d), jax.grad(loss)(point), way)))
    np.testing.assert_allclose(
        slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-7)


@pytest.mark.thorough
def test_bfloat16_loses_no_more_than_the_unfolded_form():
  """1 - cosine to float64 of the rounded inputs, mean over texts and parameters."""
  shape = Shape(dim=256, heads=8, width=256, latents=512, inner=1024)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params(shape))
  hidden, marks, _ = make_states(8, 128, 256, dtype=jnp.bfloat16)
  pool = marks == 0
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (params, hidden))
    want = np.asarray(jax.jit(reference.latent_pool)(*wide, pool))

  def lost(impl, params):
    got = np.float64(latent_pool(params, hidden, pool, impl=impl))
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(want, axis=-1)
    return np.mean(1 - np.sum(got * want, -1) / norms)

  unfolded = lost('reference', params)
  assert lost('blockwise', params) <= unfolded < 1e-5
  # Keys and values that are never rounded: fold_latents in float32.
  single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  assert lost('blockwise', single) <= unfolded / 2


@pytest.mark.thorough
def test_packed_is_padded():
  """Texts side by side in one row give what they give alone."""
  params = make_params()
  lengths = [5, 1, 8]
  rng = np.random.default_rng(0)
  texts = [rng.normal(size=(n, 16)).astype(np.float32) for n in lengths]
  padded = np.zeros((3, 8, 16), np.float32)
  for row, text in zip(padded, texts):
    row[:len(text)] = text
  pool = np.arange(8) < np.array(lengths)[:, None]
  alone = latent_pool(params, jnp.asarray(padded), jnp.asarray(pool))
  packed = jnp.asarray(np.concatenate(texts))[None]
  segments = jnp.asarray(np.repeat([0, 1, 2], lengths))[None]
  together = latent_pool_packed(params, packed, segments, 3)[0]
  # float32 on both sides, sums in another order.
  np.testing.assert_allclose(together, alone, rtol=2e-6, atol=2e-6)
  order = rng.permutation(14)
  shuffled = latent_pool_packed(params, packed[:, order], segments[:, order], 3)[0]
  np.testing.assert_allclose(shuffled, alone, rtol=2e-6, atol=2e-6)


def test_folding_once_is_folding_always():
  params = make_params()
  hidden, marks, _ = make_states(3, 6, 16)
  folded = fold_latents(params)
  np.testing.assert_array_equal(
      latent_pool(folded, hidden, marks == 0),
      latent_pool(params, hidden, marks == 0, impl='blockwise'))


@pytest.mark.parametrize('impl', ['reference', 'blockwise'])
def test_a_text_without_tokens_is_zero_and_pulls_nothing(impl):
  params = make_params()
  hidden, marks, cotangent = make_states(3, 6, 16)
  pool = (marks == 0).at[1].set(False)
  out, (grads, d_hidden) = value_and_grads(
      lambda p, h: latent_pool(p, h, pool, impl=impl), params, hidden,
      cotangent[:, 0])
  np.testing.assert_array_equal(out[1], 0)
  np.testing.assert_array_equal(d_hidden[1], 0)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('impl', ['reference', 'blockwise'])
def test_tokens_that_are_not_kept_do_not_matter(impl):
  params = make_params()
  hidden, marks, cotangent = make_states(3, 6, 16)
  pool = (marks == 0).at[:, -1].set(False)
  poisoned = hidden.at[:, -1].set(jnp.nan)
  want, got = (value_and_grads(lambda p, h: latent_pool(p, h, pool, impl=impl),
                               params, h, cotangent[:, 0])
               for h in (hidden, poisoned))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_kept_nan_is_an_error_or_stays_in_its_row():
  params = make_params()
  hidden, _, _ = make_states(3, 6, 16)
  hidden = hidden.at[1, 2, 0].set(jnp.nan)
  pool = jnp.ones((3, 6), bool)
  with pytest.raises(ValueError, match=r'hidden\[1, 2\] is not finite'):
    latent_pool(params, hidden, pool)
  out = np.asarray(jax.jit(latent_pool)(params, hidden, pool))
  assert np.isfinite(out[[0, 2]]).all() and np.isnan(out[1]).any()


@pytest.mark.parametrize('change,message', [
    (dict(pool=jnp.ones((3, 6), jnp.int32)), 'must be bool'),
    (dict(pool=jnp.ones((3, 5), bool)), r'pool must be \(3, 6\)'),
    (dict(hidden=jnp.ones((3, 6, 8))), '8 wide, but the head is 16'),
    (dict(hidden=jnp.ones((6, 16))), r'it must be \[B,T,D\]'),
    (dict(hidden=jnp.ones((3, 6, 16), int)), 'must be floating'),
    (dict(impl='fast'), "impl 'fast' is unknown"),
])
def test_bad_input_is_named(change, message):
  good = dict(hidden=jnp.ones((3, 6, 16)), pool=jnp.ones((3, 6), bool))
  with pytest.raises(ValueError, match=message):
    latent_pool(make_params(), **{**good, **change})


@pytest.mark.parametrize('segments,count,message', [
    (jnp.full((3, 6), 2), 2, 'segments holds 2, but num_segments is 2'),
    (jnp.ones((3, 6)), 2, 'must be an integer'),
    (jnp.zeros((3, 6), int), 0, 'at least 1'),
])
def test_bad_segments_are_named(segments, count, message):
  with pytest.raises(ValueError, match=message):
    latent_pool_packed(make_params(), jnp.ones((3, 6, 16)), segments, count)


def test_a_named_implementation_runs_or_says_why_not():
  hidden, pool = jnp.ones((3, 6, 16)), jnp.ones((3, 6), bool)
  params = make_params()
  for impl in ('tpu', 'gpu'):
    with pytest.raises(dispatch.Unsupported, match=f'{impl} runs on a {impl}'):
      latent_pool(params, hidden, pool, impl=impl)
  with pytest.raises(dispatch.Unsupported, match='unfolded'):
    latent_pool(fold_latents(params), hidden, pool, impl='reference')
  for check in (tpu.check, gpu.check):
    with pytest.raises(dispatch.Unsupported, match='got D=72'):
      check(72, 384, jnp.bfloat16)
    with pytest.raises(dispatch.Unsupported, match='float64'):
      check(128, 512, jnp.float64)


def test_the_mean_is_not_rounded_to_bfloat16():
  """float32 x bfloat16, jitted: 16 bits of the mean, not 8, reach the product."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(4, 1, 512)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(512, 64)), jnp.bfloat16)
  got = jax.jit(api._matmul)(x, kernel)
  want = np.float64(x) @ np.float64(kernel)
  assert distance(got, want) < 2**-16
