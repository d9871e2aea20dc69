"""Laws of attention: every form is the formula, in values and gradients."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed.kernels import dispatch
from jaxembed.kernels.attention import (
  Call,
  attend,
  blockwise,
  choose,
  cpu,
  gpu,
  pattern,
  tpu,
)
from tests.helpers.tiers import after

MODES = ('bidirectional', 'causal', 'prefix')
# (mode, window, packed, side of the padding, key heads, dtype); the first few stand
# for the rest, each of whose values occurs in one of them.
SOME = [('causal', 0, True, 'left', 2, 'float32'),
        ('bidirectional', 7, False, 'right', 4, 'float32'),
        ('prefix', 7, False, 'left', 2, 'float32'),
        ('bidirectional', 0, False, 'left', 2, 'float32'),
        ('bidirectional', 0, True, 'right', 1, 'bfloat16')]
GRID = SOME + [case for case in itertools.product(
    MODES, (0, 7), (False, True), ('left', 'right'), (4, 2), ('float32', 'bfloat16'))
    if case not in SOME]
# Largest difference, of values of order 1 in float32 and relative in bfloat16.
BOUND = {'float32': 2e-5, 'bfloat16': 2e-2}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
  """Tiles that rows of a few dozen tokens have several of."""
  monkeypatch.setattr(blockwise, '_QUERIES', 16)
  monkeypatch.setattr(blockwise, '_KEYS', 16)
  monkeypatch.setattr(blockwise, 'CPU_SCORES', 512)
  monkeypatch.setattr(cpu, 'QUERIES', 16)
  monkeypatch.setattr(cpu, '_ONE_TILE', 16)
  monkeypatch.setattr(tpu, '_TILES', (tpu.LANES,))


def drawn(mode, window, packed, side, groups, dtype, length=44, rows=3, heads=4):
  """(q, k, v, pattern, what gradients are taken along): texts of every length, of
  none, and of all of a row."""
  rng = np.random.default_rng(0)
  q, k, v, g = (jnp.asarray(rng.normal(size=(rows, length, n, 8)), dtype)
                for n in (heads, groups, groups, heads))
  count, place = np.array([length, length // 2, 0][:rows])[:, None], np.arange(length)
  mask = place < count if side == 'right' else place >= length - count
  segment = (rng.random((rows, length)) < 0.15).cumsum(1) if packed else None
  prefix = jnp.array([5, 30, 0][:rows]) if mode == 'prefix' else None
  seen = pattern.of_tokens(
      mode, mask, segment, window=window, prefix=prefix,
      positions=np.maximum(mask.cumsum(1) - 1, 0))
  return q, k, v, seen, jnp.where(mask[..., None, None], g, 0)


def results(run, q, k, v, seen, g, **options):
  """The output where a text is, and the gradients of q, k and v (and bias)."""
  bias = options.pop('bias', None)

  def f(q, k, v, bias):
    out = run(q, k, v, seen, bias=bias, **options)
    assert out.dtype == q.dtype
    return (out * g).astype(jnp.float32).sum(), jnp.where(g != 0, out, 0)

  more = () if bias is None else (3,)
  (_, out), grads = jax.jit(jax.value_and_grad(
      f, argnums=(0, 1, 2, *more), has_aux=True))(q, k, v, bias)
  return out, *grads


def agree(a, b, dtype):
  for x, y in zip(a, b, strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert np.isfinite(y).all()
    scale = 1.0 if dtype == 'float32' else np.abs(x).max()
    np.testing.assert_allclose(y, x, rtol=0, atol=BOUND[dtype] * scale)


dense = functools.partial(attend, impl='dense')
tiled = functools.partial(attend, impl='blockwise')


def splash(*args, bias, **options):
  return tpu.attend(*args, **options, interpret=True)


def as_cudnn(*args, bias, **options):
  """What cuDNN is given, with XLA in its place."""
  return gpu.attend(*args, **options, implementation='xla')


@pytest.mark.parametrize('mode, window, packed, side, groups, dtype',
                         after(len(SOME), GRID))
def test_tiles_are_the_formula(mode, window, packed, side, groups, dtype):
  arrays = drawn(mode, window, packed, side, groups, dtype)
  agree(results(dense, *arrays, scale=0.4), results(tiled, *arrays, scale=0.4), dtype)


@pytest.mark.parametrize('side, groups, dtype, length', [
    ('left', 2, 'float32', 44), ('right', 4, 'float32', 16),
    ('right', 1, 'bfloat16', 44)])
def test_a_cpu_computes_the_formula_where_no_gradient_is_asked_for(
    side, groups, dtype, length):
  """By tiles of all keys: three, or one; a row without text gets zeros."""
  q, k, v, seen, g = drawn('bidirectional', 0, False, side, groups, dtype, length)
  want, found = (jax.jit(functools.partial(form, scale=0.4))(q, k, v, seen)
                 for form in (dense, tiled))
  agree([jnp.where(g != 0, want, 0)], [jnp.where(g != 0, found, 0)], dtype)
  assert found.dtype == q.dtype and not found[2].any()


@pytest.mark.parametrize('mode, window, packed, side, groups, dtype', after(
    1, [case for case in GRID if case[0] != 'prefix']))
def test_splash_is_the_formula(mode, window, packed, side, groups, dtype):
  """The TPU's kernel, interpreted: three tiles by three."""
  arrays = drawn(mode, 10 * window, packed, side, groups, dtype, length=300)
  agree(results(dense, *arrays, scale=0.4), results(splash, *arrays, scale=0.4), dtype)


@pytest.mark.parametrize('mode, window, packed, side, groups, dtype', after(
    1, [('causal', 7, False, 'left', 2, 'float32'), *(
        case for case in GRID if case[0] != 'prefix' and (case[0] == 'causal' or
        not case[1]) and not (case[1] and case[2]))]))
def test_what_cudnn_is_given_is_the_formula(mode, window, packed, side, groups, dtype):
  """Lengths, order and masks, with XLA in cuDNN's place."""
  arrays = drawn(mode, window, packed, side, groups, dtype)
  agree(results(dense, *arrays, scale=0.4), results(as_cudnn, *arrays, scale=0.4),
        dtype)


@pytest.mark.parametrize('form', after(1, [tiled, dense, splash]))
def test_a_window_that_holds_in_some_layers(form):
  """The flag of a layer says whether its window does, in every form."""
  q, k, v, seen, g = drawn('causal', 7, False, 'left', 2, 'float32', rows=1)
  for holds in (True, False):
    wanted = results(dense, q, k, v, dataclasses.replace(
        seen, window=7 if holds else 0), g, scale=0.4)
    flagged = dataclasses.replace(seen, windowed=jnp.array(holds))
    agree(wanted, results(form, q, k, v, flagged, g, scale=0.4), 'float32')


@pytest.mark.parametrize('mode', after(1, MODES))
def test_bias_by_distance_and_soft_cap(mode):
  arrays = drawn(mode, 0, mode != 'prefix', 'right', 2, 'float32')
  bias = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2 * 44 - 1)), 'float32')
  options = dict(scale=0.4, softcap=3.0, bias=bias)
  agree(results(dense, *arrays, **options), results(tiled, *arrays, **options),
        'float32')


@pytest.mark.thorough
@pytest.mark.parametrize('window', [0, 70])
@pytest.mark.parametrize('mode', ['causal', 'bidirectional'])
def test_splash_caps_scores(mode, window):
  arrays = drawn(mode, window, True, 'left', 2, 'float32', length=300)
  capped, plain = (results(dense, *arrays, scale=2.0, softcap=cap) for cap in (3.0, 0))
  assert np.abs(capped[0] - plain[0]).max() > 0.1
  agree(capped, results(splash, *arrays, scale=2.0, softcap=3.0), 'float32')


def test_the_formula_is_that_of_a_loop():
  """float64, one query at a time, against both forms."""
  q, k, v, seen, g = drawn('causal', 7, True, 'left', 2, 'float32')
  found = [results(form, q, k, v, seen, g, scale=0.4)[0] for form in (dense, tiled)]
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  text, wanted = np.asarray(seen.text), np.zeros(q.shape)
  for b, t, n in np.argwhere(np.asarray(g)[..., 0] != 0):
    keys = [s for s in range(t + 1) if t - s < 7 and text[b, s] == text[b, t]]
    e = np.exp(0.4 * k[b, keys, n // 2] @ q[b, t, n])
    wanted[b, t, n] = e @ v[b, keys, n // 2] / e.sum()
  for out in found:
    np.testing.assert_allclose(out, wanted, atol=1e-5)


@pytest.mark.parametrize('form, mode, window, side, groups', after(1, [
    (tiled, 'bidirectional', 0, 'right', 2), *itertools.product(
        (dense, tiled), MODES, (0, 7), ('left', 'right'), (4, 2)), *itertools.product(
        (splash,), ('causal', 'bidirectional'), (0, 7), ('left',), (4, 2)),
    *((as_cudnn, mode, 0, 'right', 2) for mode in ('causal', 'bidirectional'))]))
def test_a_text_of_a_packed_row_is_alone(form, mode, window, side, groups):
  """Other numbers in one text of a row move nothing of the others, nor do gradients
  of the others reach it."""
  q, k, v, seen, g = drawn(mode, window, True, side, groups, 'float32', rows=1)
  text = np.asarray(seen.text)[0]
  other = text == np.median(text)
  assert 2 <= other.sum() < (text >= 0).sum()
  g = jnp.where(other[None, :, None, None], 0, g)
  before = results(form, q, k, v, seen, g, scale=0.4)
  moved = (jnp.where(other[None, :, None, None], x + 1, x) for x in (q, k, v))
  after_ = results(form, *moved, seen, g, scale=0.4)
  for x, y in zip(before, after_):
    np.testing.assert_array_equal(x, y)
    assert not np.asarray(x)[0, other].any()


@pytest.mark.thorough
@pytest.mark.parametrize('form, count, case', [
    (form, count, case) for form in ('tiles', 'splash') for count in (2, 4)
    for case in itertools.product(MODES, (0, 7), (False, True), ('left', 'right'),
                                  (4, 2), ('float32',))
    if (form == 'tiles' or case[0] != 'prefix') and (count == 4 or case in SOME)])
def test_parts_of_the_queries_are_the_formula(form, count, case):
  """What each device of a sequence axis computes: its own queries, and all keys."""
  mode, window, *rest = case
  length = 48 if form == 'tiles' else 300
  arrays = drawn(mode, window if form == 'tiles' else 10 * window, *rest, length=length)
  part = blockwise.attend if form == 'tiles' else functools.partial(
      tpu.attend, interpret=True)

  def parts(q, k, v, seen, bias, **options):
    step = length // count
    return jnp.concatenate([
        part(q[:, i:i + step], k, v, seen, first=i, **options)
        for i in range(0, length, step)], 1)

  agree(results(dense, *arrays, scale=0.4), results(parts, *arrays, scale=0.4),
        'float32')


def test_tiles_between_texts_are_not_visited():
  """Of 8 texts in a row of 8 tiles, each tile visits its own alone; a causal row half
  of all, one with a window its neighbours, padding none."""
  def visited(text, causal=False, limit=None):
    return blockwise.shared_tiles(
        text, text, jnp.int32(0), 16, 16, causal, limit).sum()

  place = jnp.arange(128)[None]
  assert visited(place // 16) == 8
  assert visited(place // 64) == 2 * 4 * 4
  assert visited(0 * place) == 64
  assert visited(0 * place, causal=True) == 8 * 9 / 2
  assert visited(0 * place, limit=jnp.int32(16)) == 8 + 2 * 7
  assert visited(jnp.where(place < 16, 0, -1)) == 1


def test_memory_grows_with_the_length():
  """Forward and backward, twice the length: twice the temporaries, not four times."""
  def temporaries(length):
    rows = jax.ShapeDtypeStruct((1, length, 2, 8), 'float32')
    text = jax.ShapeDtypeStruct((1, length), 'int32')
    f = jax.grad(lambda q, text: tiled(
        q, q, q, pattern.Pattern(text, causal=False), scale=1.0).sum())
    return jax.jit(f).lower(rows, text).compile().memory_analysis().temp_size_in_bytes

  assert temporaries(2048) < 2.5 * temporaries(1024) < 2.5 * 4 * 1024**2 / 2


CALL = Call(platform='tpu', length=512, dtype='bfloat16', causal=True, window=False,
            mixed=False, packed=False, prefix=False, softcap=False, bias=False)


@pytest.mark.parametrize('call, wanted', [
    ({}, 'splash'), ({'softcap': True, 'window': True, 'mixed': True}, 'splash'),
    ({'prefix': True}, 'blockwise'), ({'bias': True}, 'blockwise'),
    ({'length': 64}, 'dense'),
    ({'platform': 'gpu'}, 'cudnn'), ({'platform': 'gpu', 'packed': True}, 'cudnn'),
    ({'platform': 'gpu', 'packed': True, 'length': 8192}, 'blockwise'),
    ({'platform': 'gpu', 'window': True}, 'cudnn'),
    ({'platform': 'gpu', 'window': True, 'causal': False}, 'blockwise'),
    ({'platform': 'gpu', 'softcap': True}, 'blockwise'),
    ({'platform': 'gpu', 'dtype': 'float32'}, 'blockwise'),
    ({'platform': 'cpu'}, 'blockwise'), ({'platform': 'cpu', 'length': 64}, 'dense')])
def test_choice(call, wanted):
  call = CALL._replace(**call)
  assert choose(call) == choose(call, wanted) == wanted
  for name in {'splash', 'cudnn'} - {wanted} if wanted != 'dense' else ():
    with pytest.raises(dispatch.Unsupported, match=f"{name}.*use 'auto'"):
      choose(call, name)


def test_a_form_that_there_is_not_is_refused():
  q, k, v, seen, _ = drawn('causal', 0, False, 'left', 2, 'float32')
  with pytest.raises(ValueError, match='flash.*choose one of'):
    attend(q, k, v, seen, scale=1.0, impl='flash')
  with pytest.raises(dispatch.Unsupported, match="splash.*runs on TPUs.*'blockwise'"):
    attend(q, k, v, seen, scale=1.0, impl='splash')
