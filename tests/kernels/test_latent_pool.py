"""The latent-attention head: the published form, and every faster one beside it."""

import dataclasses
import functools
import math

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed.kernels import dispatch
from jaxembed.kernels.latent_pool import (
  api,
  blockwise,
  fold_latents,
  gpu,
  latent_pool,
  latent_pool_packed,
  recompute,
  reference,
  tpu,
)
from tests.helpers.tiers import after, thorough


@dataclasses.dataclass(frozen=True)
class Shape:
  """The head's widths; by default a head dim that is not D / heads."""

  dim: int = 16
  heads: int = 3
  width: int = 10
  latents: int = 7
  inner: int = 24


WIDE = Shape(dim=128, heads=2, width=48, latents=24, inner=256)
LANES = Shape(dim=128, heads=2, width=16, latents=24, inner=384)


def make_params(shape=Shape(), dtype=np.float32, seed=0):
  """Random parameters, none of them zero or one."""
  rng = np.random.default_rng(seed)

  def kernel(*dims, fan_in):
    return jnp.asarray(rng.normal(size=dims) / math.sqrt(fan_in), dtype)

  def vector(size, centre=0.0):
    return jnp.asarray(centre + 0.3 * rng.normal(size=size), dtype)

  d, n, h, f = shape.dim, shape.heads, shape.width, shape.inner

  def norm():
    return {'scale': vector(d, 1.0), 'bias': vector(d)}

  def linear(rows, columns):
    return {'kernel': kernel(rows, columns, fan_in=rows), 'bias': vector(columns)}

  return {
      'latents': kernel(shape.latents, d, fan_in=1),
      'norm': norm(),
      'norm_context': norm(),
      **{name: {'kernel': kernel(d, n, h, fan_in=d / 4)} for name in ('q', 'k', 'v')},
      'out': {'kernel': kernel(n, h, d, fan_in=n * h)},
      'mlp_norm': norm(),
      'mlp': {'up': linear(d, f), 'gate': linear(d, f), 'down': linear(f, d)},
  }


def make_states(rows, length, dim, segments=1, dtype=np.float32, seed=1):
  """Token states, whose texts they are (-1: none), a cotangent."""
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(rows, length, dim)), dtype)
  marks = jnp.asarray(np.sort(rng.integers(-1, segments, (rows, length)), axis=1))
  cotangent = jnp.asarray(rng.normal(size=(rows, segments, dim)))
  return hidden, marks, cotangent


def value_and_grads(op, params, hidden, cotangent):
  """Outputs and gradients in parameters and states, of <op, cotangent>."""
  def loss(params, hidden):
    out = op(params, hidden)
    return jnp.sum(out * cotangent), out

  (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
      params, hidden)
  return out, grads


def distance(got, want):
  """Largest relative Frobenius distance over the leaves (absolute from zeros)."""
  def leaf(x, y):
    x, y = np.float64(x), np.float64(y)
    assert np.isfinite(x).all()
    return np.linalg.norm(x - y) / (np.linalg.norm(y) or 1.0)

  return max(jax.tree.leaves(jax.tree.map(leaf, got, want)))


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


# A kernel in interpret mode, against blockwise: same rounding points, so float32
# differs by the order of sums alone. 600 tokens are two chunks, 1100 three.
CASES = [('tpu', 5, 22, 1, 'float32'), ('tpu', 2, 600, 1, 'float32'),
         ('tpu', 2, 600, 3, 'float32'), thorough('tpu', 5, 40, 3, 'float32'),
         thorough('tpu', 9, 80, 1, 'float32'),
         thorough('gpu', 3, 40, 3, 'bfloat16'),
         thorough('gpu', 1, 300, 1, 'bfloat16')]


def interpreted(device):
  """The device's `geglu_sums`, run on this one."""
  if device == 'tpu':
    return functools.partial(tpu.geglu_sums, True)
  # The interpreter has no public name in this release of JAX.
  params = pytest.importorskip('jax._src.pallas.mosaic_gpu.interpret.params')
  return functools.partial(
      recompute.geglu_sums, gpu.kernel(params.InterpretGPUParams()))


def pooled_by(geglu_sums, marks, segments):
  def op(params, hidden):
    folded = fold_latents(params, hidden.dtype)
    return api.folded_pool(folded, hidden, marks, segments, geglu_sums, 128)
  return op


@pytest.mark.parametrize('device,rows,length,segments,dtype', CASES)
def test_kernel_is_blockwise(device, rows, length, segments, dtype):
  params = make_params(LANES)
  hidden, marks, cotangent = make_states(rows, length, 128, segments)
  hidden = hidden.astype(dtype)
  want, got = (value_and_grads(pooled_by(sums, marks, segments), params, hidden,
                               cotangent)
               for sums in (blockwise.geglu_sums, interpreted(device)))
  # bfloat16: both round pre-activations and their gradients, but sums in another
  # order round the other way now and then: within one unit, 2**-8.
  assert distance(got, want) < (2e-6 if dtype == 'float32' else 2**-8)


@pytest.mark.parametrize('rows,length,segments', after(1, [
    (5, 40, 3), (9, 80, 1), (2, 1100, 4)]))
def test_kernel_for_bfloat16_is_as_close_to_float64_as_blockwise(
    rows, length, segments):
  """The two do not round alike on a CPU, which keeps what is not stored in float32."""
  params = make_params(LANES)
  hidden, marks, cotangent = make_states(rows, length, 128, segments)
  hidden = hidden.astype(jnp.bfloat16)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (params, hidden))
    want = value_and_grads(lambda p, h: reference.latent_pool_packed(
        p, h, marks, segments), *wide, cotangent)
  theirs, ours = (distance(value_and_grads(
      pooled_by(sums, marks, segments), params, hidden, cotangent), want)
      for sums in (blockwise.geglu_sums, interpreted('tpu')))
  assert ours < 1.1 * theirs < 0.02


@pytest.mark.thorough
@pytest.mark.parametrize('cores', [1, 2])
@pytest.mark.parametrize('rows,length,segments', [(9, 80, 1), (2, 1100, 4)])
def test_kernel_does_not_race(rows, length, segments, cores, monkeypatch):
  """Columns of F are shared by the cores; sums stay while a row's chunks pass."""
  interpreter = pytest.importorskip(
      'jax._src.pallas.mosaic.interpret.interpret_pallas_call',
      reason='its findings have no public name in this release of JAX')
  monkeypatch.setattr(tpu, '_COLUMNS', (128,))
  params = make_params(LANES)
  hidden, marks, cotangent = make_states(rows, length, 128, segments)
  run = functools.partial(tpu.geglu_sums, pltpu.InterpretParams(
      detect_races=True, num_cores_or_threads=cores))
  want, got = (value_and_grads(pooled_by(sums, marks, segments), params, hidden,
                               cotangent) for sums in (blockwise.geglu_sums, run))
  assert distance(got, want) < 2e-6
  assert not interpreter.races.races_found


@pytest.mark.thorough
@pytest.mark.parametrize('device, dtype', [('tpu', 'float32'), ('gpu', 'bfloat16')])
def test_a_nan_in_a_text_reaches_no_other_text_of_its_group(device, dtype):
  """Several texts share a step of the kernel: six of 80 tokens, or three of 40."""
  hidden, _, _ = make_states(9, 80 if device == 'tpu' else 40, 128)
  hidden = hidden.at[4, 7, 3].set(jnp.nan).astype(dtype)
  marks = jnp.zeros(hidden.shape[:2], jnp.int32)
  out = np.asarray(pooled_by(interpreted(device), marks, 1)(
      make_params(LANES), hidden))
  assert np.isfinite(np.delete(out, 4, 0)).all() and np.isnan(out[4]).any()


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
