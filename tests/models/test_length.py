"""Laws of length methods: against transformers, against loops, and on short texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed.models import (
  clex,
  dprope,
  encoder,
  length,
  length_rule,
  positions,
  rope,
)
from jaxembed.models.layers import Embedding
from jaxembed.types import Tokens
from tests.helpers import longer
from tests.helpers.longer import O, T
from tests.helpers.tiers import after

encode = jax.jit(encoder.encode, static_argnums=1)


def _tokens(lengths, width=T):
  mask = np.arange(width)[None] < np.array(lengths)[:, None]
  ids = np.random.default_rng(0).integers(2, 96, mask.shape).astype(np.int32)
  return Tokens(np.where(mask, ids, 0), mask, mask)


@pytest.mark.parametrize('method,kind,more', after(2, [
    ('yarn', 'yarn', {}), ('interpolate', 'linear', {}), ('random_scale', 'linear', {}),
    ('dynamic_ntk', 'dynamic', {}),
    ('dprope', 'longrope', {'attention_factor': 1.0}),
    ('theta', 'longrope', {'attention_factor': 1.0})]))
def test_frequencies_are_transformers(method, kind, more):
  """And so are what short and long texts read, and the factor of attention."""
  import torch
  from transformers import LlamaConfig
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
  texts = {'texts': 'long'} if method == 'theta' else {}
  cfg, _ = longer.extended('mistral', method, **texts)
  scaling = length_rule.backbone(cfg).rope_scaling
  if kind == 'longrope':
    more = more | {'short_factor': list(scaling.short_factors),
                   'long_factor': list(scaling.long_factors)}
  theirs = LlamaConfig(
      hidden_size=32, num_attention_heads=4, head_dim=8,
      max_position_embeddings=O, rope_parameters={
          'rope_type': kind, 'rope_theta': 10000.0, 'factor': T / O,
          'original_max_position_embeddings': O, **more})
  for n in (8, O, O + 1, 40, T):
    freqs, factor = ROPE_INIT_FUNCTIONS[kind](
        theirs, torch.device('cpu'), seq_len=n)
    found = longer.rule(cfg, n)
    np.testing.assert_allclose(
        np.broadcast_to(found.freqs, (1, n, 4))[0, -1], freqs, rtol=2e-6)
    assert found.factor == pytest.approx(factor, rel=1e-12)


def test_ntk_stretches_the_slowest_channel_by_the_scale():
  cfg, _ = longer.extended('mistral', 'ntk')
  before = rope.frequencies(8, 10000.0)
  ratio = before / longer.rule(cfg, 5).freqs
  np.testing.assert_allclose(ratio[[0, -1]], [1, T / O], rtol=1e-5)
  assert length_rule.backbone(cfg).rope_theta == pytest.approx(1e4 * 4 ** (8 / 6))


@pytest.mark.parametrize('width,original,scale,kept', [
    (128, 4096, 4, [0, 3, 5, 6, 7, 9, *range(11, 21), 22, 23, 24, 26, 27, 29]),
    (64, 512, 8, [0, 2, 5, 6, 7, 9, 11])])
def test_distributional_choice_of_channels(width, original, scale, kept):
  """The picks of the published code, run again in float32 and in float64."""
  found = np.array(dprope.factors(
      10000.0 ** -(np.arange(0, width, 2) / width), original, original * scale))
  assert np.flatnonzero(found == 1).tolist() == kept
  assert set(found) == {1, scale}


def test_clex_solves_its_equation():
  """At scale 1 it is plain RoPE; without V the base grows; with V as a loop says."""
  width, theta, e = 16, 10000.0, np.arange(0, 16, 2)
  params = clex.init(jax.random.key(0), width)
  run = jax.jit(lambda p: clex.frequencies(p, width, theta, 4))
  grid = np.asarray(run(params))
  np.testing.assert_array_equal(grid[0], rope.frequencies(width, theta))
  for t in (2, 3, 4):
    base = theta * (2 * t - 1) ** (width / (width - 2))
    np.testing.assert_allclose(grid[t - 1], base ** -(e / width), rtol=1e-5)
  params['down'] = 0.3 * jax.random.normal(jax.random.key(1), (width, 8))
  up, down = (np.asarray(params[n], np.float64) for n in ('up', 'down'))

  def slope(t, z):  # in float64, with finite differences of ln f
    def log_f(t):
      return -np.log(theta * (2 * t - 1) ** (width / (width - 2))) * e / width
    rate = (log_f(t + 1e-6) - log_f(t - 1e-6)) / 2e-6
    return np.tanh((z + log_f(t)) @ up) @ down + rate

  z, h = -np.log(theta) * e / width, 1e-3
  for i in range(2000):  # the midpoint method, ten times as fine
    t = 1 + i * h
    z = z + h * slope(t + h / 2, z + h / 2 * slope(t, z))
  np.testing.assert_allclose(run(params)[2], np.exp(z), rtol=1e-4)


def test_clex_draws_places_of_a_longer_text():
  index = np.broadcast_to(np.arange(12, dtype=np.int32), (64, 12))
  count = np.broadcast_to(np.array([12] * 32 + [7] * 32, np.int32)[:, None], (64, 12))
  draw = jax.jit(clex.draw, static_argnums=3)
  scale, ids = map(np.asarray, draw(jax.random.key(0), index, count, 4))
  assert set(scale[:, 0]) == {1, 2, 3, 4}
  for row, n, t in zip(ids, count[:, 0], scale[:, 0]):
    assert row[0] == 0 and row[n - 1] == n * t - 1
    assert (np.diff(row[:n]) > 0).all()
  assert len(np.unique(ids[scale[:, 0] == 4, 1])) > 2


IDENTITY = [('bert', 'grouped', {}), ('mistral', 'self_extend', {'window': 4}),
            ('bert', 'interpolate', {}), ('bert', 'recurrent', {}),
            ('mistral', 'dynamic_ntk', {}), ('roberta', 'interpolate', {}),
            ('mistral', 'ntk', {'texts': 'long'}), ('modernbert', 'self_extend', {}),
            ('mistral', 'interpolate', {'texts': 'long'}),
            ('mistral', 'dprope', {'texts': 'long'}),
            ('mistral', 'theta', {'texts': 'long'}), ('roberta', 'grouped', {}),
            ('bert', 'windows', {}), ('mistral', 'clex', {}),
            ('mistral', 'none', {'temperature': True})]


@pytest.mark.parametrize('family,method,options', after(2, IDENTITY))
def test_texts_of_the_original_length_keep_their_vectors(family, method, options):
  """And longer ones get others than without the method, where that can read them."""
  cfg, params = longer.model(family)
  changed, wide = longer.extended(family, method, **options)
  long = _tokens([T, O, O + 1])
  mask = np.arange(O)[None] < np.array([O - 1, O, 3])[:, None]
  short = Tokens(long.ids[:, :O], mask, mask)
  want = encode(params, cfg, short)
  np.testing.assert_allclose(encode(wide, changed, short), want, atol=1e-6)
  if method == 'windows':
    return
  got = encode(wide, changed, long)
  np.testing.assert_allclose(got[1], want[1], atol=1e-6)  # beside longer ones too
  assert np.isfinite(got).all()
  if length.longest(cfg) is None:
    other = encode(params, cfg, long)
    assert np.abs(got - other)[[0, 2]].max(1).min() > 1e-4


@pytest.mark.parametrize('family,method,ids', [
    ('bert', 'grouped', lambda i, n: i // -(-n // O)),
    ('bert', 'recurrent', lambda i, n: i % O),
    ('bert', 'interpolate', lambda i, n: i * 4 if n <= O else i)])
def test_rows_of_a_table(family, method, ids):
  cfg, _ = longer.extended(family, method)
  for n in (1, O, O + 1, 3 * O, T):
    found = longer.rule(cfg, n).ids
    assert found[0].tolist() == [ids(i, n) for i in range(n)]


@pytest.mark.parametrize('family', ['bert', 'roberta'])
def test_an_interpolated_table_keeps_its_rows(family):
  cfg, params = longer.model(family)
  _, wide = longer.extended(family, 'interpolate')
  first, old = cfg.backbone.position_offset, params['backbone']['embed']['position']
  new = wide['backbone']['embed']['position']
  assert new.shape == (first + T, old.shape[1])
  np.testing.assert_array_equal(new[:first], old[:first])
  np.testing.assert_array_equal(new[first::4], old[first:])
  np.testing.assert_allclose(new[first + 5], 0.75 * old[first + 1] + 0.25 * old[
      first + 2], atol=1e-6)
  np.testing.assert_array_equal(new[-1], old[-1])


@pytest.mark.parametrize('family', after(1, ['roberta', 'bert']))
def test_the_rows_that_a_table_had_are_not_trained(family):
  cfg, wide = longer.extended(family, 'interpolate')

  def moved(cfg):
    model = Embedding(cfg.backbone, 'float32', length.frozen_rows(cfg))
    ids = np.arange(T)[None]
    loss = lambda p: jnp.square(model.apply({'params': p}, ids, ids)).sum()
    grad = jax.grad(loss)(wide['backbone']['embed'])['position']
    return np.abs(np.asarray(grad)).max(1)[cfg.backbone.position_offset:] > 0

  assert moved(cfg).reshape(-1, 4).tolist() == [[False] + [True] * 3] * O
  trained = dataclasses.replace(cfg, length=dataclasses.replace(
      cfg.length, frozen=False))
  assert moved(trained).all()


@pytest.mark.parametrize('mode', after(1, ['bidirectional', 'causal']))
def test_self_extend_is_the_loop(mode, monkeypatch):
  """Pair by pair in float64, over tiles, one key head for two query heads."""
  from jaxembed.kernels.attention import distant, pattern
  monkeypatch.setattr(distant, 'CPU_SCORES', 8 * 2 * 2 * 40)
  n, w, g, width = 40, 6, 4, 8
  q, k, v = (np.asarray(jax.random.normal(jax.random.key(i), (2, n, heads, width)))
             for i, heads in enumerate((2, 1, 1)))
  counts = [n, 11]
  freqs = rope.frequencies(width, 10000.0)

  def at(x, place):  # [H] rotated
    z = (x[:4] + 1j * x[4:]) * np.exp(1j * place * freqs.astype(np.float64))
    return np.concatenate([z.real, z.imag])

  def score(x, y, i, j, near):
    far = w - w // g
    if abs(i - j) < near:
      return at(x, i) @ at(y, j)
    behind, ahead = min(i, j) // g, max(i, j) // g + far
    return at(x, ahead if i > j else behind) @ at(y, behind if i > j else ahead)

  near = np.where(np.array(counts) > O, w, 2**30)[:, None].repeat(n, 1)
  rotated = lambda x, place: rope.rotate(x, *rope.table(
      freqs, np.broadcast_to(place, (2, n))))
  index = np.arange(n)
  grouped = index // g
  shifted = grouped + w - w // g
  mask = index[None] < np.array(counts)[:, None]
  got = distant.attend(
      rotated(q, index), rotated(k, index), v, pattern.of_tokens(mode, mask),
      distant.Distant(near, rotated(q, shifted), rotated(k, grouped),
                      rotated(q, grouped), rotated(k, shifted)), scale=0.5)
  for b, count in enumerate(counts):
    for h in range(2):
      for i in range(0, count, 3):
        seen = range(i + 1) if mode == 'causal' else range(count)
        s = np.array([0.5 * score(q[b, i, h], k[b, j, 0], i, j, near[b, 0])
                      for j in seen])
        p = np.exp(s - s.max())
        want = (p / p.sum()) @ v[b, list(seen), 0].astype(np.float64)
        np.testing.assert_allclose(got[b, i, h], want, atol=2e-5)


@pytest.mark.parametrize('family,method', after(1, [
    ('mistral', 'self_extend'), ('bert', 'grouped'), ('bert', 'interpolate'),
    ('mistral', 'dynamic_ntk'), ('modernbert', 'self_extend')]))
def test_texts_that_share_rows_are_read_by_their_own_length(family, method):
  cfg, params = longer.extended(family, method, temperature=True)
  tokens = _tokens([30, 9, 20], 30)
  want = encode(params, cfg, tokens)
  joined = [np.concatenate([x[i, :n] for i, n in enumerate((30, 9, 20))] + [
      np.zeros(5, x.dtype)])[None] for x in (tokens.ids, tokens.mask)]
  segment = np.repeat([0, 1, 2, -1], [30, 9, 20, 5])[None].astype(np.int32)
  row = Tokens(joined[0], joined[1], joined[1], segment)
  np.testing.assert_allclose(encode(params, cfg, row)[:3], want, atol=5e-6)
  assert np.asarray(positions.counts(row))[0, [0, 31, 58]].tolist() == [30, 9, 20]


def test_temperature_grows_with_the_logarithm_of_the_length():
  cfg, _ = longer.extended('mistral', 'none', temperature=True)
  for n in (2, O, 2 * O, T):
    scale = longer.rule(cfg, n).query_scale
    np.testing.assert_allclose(scale, max(1, np.log(n) / np.log(O)), rtol=1e-6)


def test_training_draws_scales_and_use_does_not():
  """E2-LLM: (place + offset) / scale, but for the first places, within training's."""
  cfg, params = longer.extended('mistral', 'random_scale', scales=8)
  index = np.broadcast_to(np.arange(O, dtype=np.int32), (256, O))
  ids = np.asarray(length_rule.rule(
      cfg, index, np.full_like(index, O), key=jax.random.key(0)).ids)
  scale = 1 / (ids[:, 1] - ids[:, 0])
  np.testing.assert_allclose(scale, np.round(scale), atol=1e-4)
  assert set(np.round(scale)) == set(range(1, 9))
  offset = ids[:, 4] * scale - 4
  assert offset.max() > 50 and offset.min() == 0 and ids.max() <= O
  np.testing.assert_allclose(ids[:, 5:] * scale[:, None], index[:, 5:] + offset[
      :, None], atol=1e-3)
  tokens = _tokens([O, 9], O)
  run = jax.jit(lambda key: encoder.encode(params, cfg, tokens, key=key))
  drawn = [run(jax.random.key(i)) for i in (1, 2)]
  assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
  plain, _ = longer.extended('mistral', 'interpolate')
  np.testing.assert_array_equal(
      longer.rule(cfg, 5).freqs, longer.rule(plain, 5).freqs)


def test_a_base_in_use_is_not_that_of_training():
  cfg, _ = longer.extended('mistral', 'theta')
  train = longer.rule(cfg, 5, key=jax.random.key(0)).freqs
  np.testing.assert_array_equal(train, rope.frequencies(8, 1e4))
  np.testing.assert_allclose(longer.rule(cfg, 5).freqs, rope.frequencies(8, 1e5))
