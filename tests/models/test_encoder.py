"""Laws of the forward pass: attention modes, padding, batches, meshes."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import sharding
from jaxembed.config import (
  DenseConfig,
  ModelConfig,
  PoolingConfig,
)
from jaxembed.convert import tables
from jaxembed.models import encoder, presets
from jaxembed.types import Tokens
from tests.helpers import tiny_encoder
from tests.helpers.tiers import after

FAMILIES = ('mistral', 'mpnet', 'modernbert')
states = jax.jit(encoder.hidden_states, static_argnums=1, static_argnames='attention')
encode = jax.jit(encoder.encode, static_argnums=1, static_argnames='attention')


def _shift(tokens, by):
  """The same texts with `by` more tokens of padding on the left."""
  wide = [np.pad(np.asarray(x), ((0, 0), (by, 0))) for x in
          (tokens.ids, tokens.mask, tokens.pool)]
  return Tokens(*wide)


@pytest.mark.parametrize('family', after(1, FAMILIES))
@pytest.mark.parametrize('mode', ['causal', 'bidirectional'])
def test_last_token_reaches_the_first_only_when_bidirectional(family, mode):
  cfg, params = tiny_encoder.model(family)
  a = tiny_encoder.tokens(1, 5, [5])  # within every window of the tiny presets
  ids = a.ids.copy()
  ids[0, -1] += 1
  x = states(params, cfg, a, attention=mode)
  y = states(params, cfg, dataclasses.replace(a, ids=ids), attention=mode)
  moved = np.abs(np.asarray(x - y)[0]).max(-1)
  assert moved[-1] > 1e-3
  assert (moved[0] > 1e-5) == (mode == 'bidirectional')
  if mode == 'causal':
    assert np.all(moved[:-1] == 0)


@pytest.mark.parametrize('family', after(1, ['mistral', 'ministral3']))
def test_prefix_sees_itself_both_ways_and_the_rest_is_causal(family):
  cfg, params = tiny_encoder.model(family)
  tokens = tiny_encoder.tokens(2, 8, [8, 6], side='left')
  prefix = np.array([3, 2], np.int32)

  def moved(row, position):
    ids = tokens.ids.copy()
    ids[row, position] += 1
    x, y = (states(params, cfg, dataclasses.replace(tokens, ids=i),
                   attention='prefix', prefix=prefix) for i in (tokens.ids, ids))
    return np.abs(np.asarray(x - y)[row]).max(-1) > 1e-6

  # Row 1 has two tokens of padding: its prefix is at columns 2 and 3.
  assert moved(0, 2)[:3].all()
  assert moved(1, 3)[2:4].all()
  assert not moved(0, 3)[:3].any()
  assert not moved(1, 4)[2:4].any()
  full = np.array([8, 6], np.int32)
  np.testing.assert_allclose(
      states(params, cfg, tokens, attention='prefix', prefix=full)[0],
      states(params, cfg, tokens, attention='bidirectional')[0], atol=2e-5)


@pytest.mark.parametrize('family', after(1, ['mistral', 'bert', 'mpnet', 'modernbert']))
def test_padding_and_neighbours_change_nothing(family):
  cfg, params = tiny_encoder.model(family)
  tokens = tiny_encoder.tokens()
  alone = np.concatenate([
      encode(params, cfg, jax.tree.map(lambda x, i=i: x[i:i + 1], tokens))
      for i in range(4)])
  wider = Tokens(*(np.pad(np.asarray(x), ((0, 0), (0, 7))) for x in
                   (tokens.ids, tokens.mask, tokens.pool)))
  together = encode(params, cfg, tokens)
  # Unit vectors: 1e-6 is the bound asked for, a few float32 ulp of the sums.
  np.testing.assert_allclose(alone, together, atol=1e-6)
  np.testing.assert_allclose(encode(params, cfg, wider), together, atol=1e-6)
  if cfg.backbone.positions == 'mask':  # BERT counts columns, as its reference does
    np.testing.assert_allclose(
        encode(params, cfg, _shift(tokens, 5)), together, atol=1e-6)


def test_a_window_hides_what_is_far():
  cfg, params = tiny_encoder.model('mistral')
  near = dataclasses.replace(cfg, backbone=dataclasses.replace(
      cfg.backbone, num_layers=1, window=3, two_way_window=3))
  one = jax.tree.map(lambda x: x, params)
  one['backbone']['layers'] = jax.tree.map(
      lambda x: x[:1], params['backbone']['layers'])
  tokens = tiny_encoder.tokens(1, 10, [10])
  ids = tokens.ids.copy()
  ids[0, 5] += 1
  for mode, seen in (('causal', range(5, 8)), ('bidirectional', range(3, 8))):
    x, y = (states(one, near, dataclasses.replace(tokens, ids=i), attention=mode)
            for i in (tokens.ids, ids))
    moved = np.flatnonzero(np.abs(np.asarray(x - y)[0]).max(-1))
    assert list(moved) == list(seen)


def test_empty_rows_and_empty_pools_are_finite():
  cfg, params = tiny_encoder.model('mistral')
  tokens = tiny_encoder.tokens(3, 6, [6, 6, 0])
  pool = tokens.pool.copy()
  pool[1] = False  # an instruction that filled the row
  v = np.asarray(encode(params, cfg, dataclasses.replace(tokens, pool=pool)))
  full = np.asarray(encode(params, cfg, tokens))
  np.testing.assert_array_equal(v[1], full[1])  # falls back to the attention mask
  np.testing.assert_array_equal(v[2], 0)
  np.testing.assert_allclose(np.linalg.norm(v[:2], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize('family, shape', after(1, [
    ('bert', (4, 2, 1)), ('gemma3_text', (2, 2, 2)), ('bert', (8, 1, 1)),
    ('bert', (2, 2, 2)), ('gemma3_text', (8, 1, 1)), ('gemma3_text', (4, 2, 1))]))
def test_eight_devices_equal_one(family, shape):
  cfg, params = tiny_encoder.model(
      family, dense=(DenseConfig(features=16, activation='tanh', residual=True,
                                 normalize_input=True),),
      pooling=PoolingConfig(kind='latent_attention', latents=8, heads=2, head_dim=8))
  tokens = tiny_encoder.tokens(8)

  def loss(params, cfg, tokens):
    v = encoder.encode(params, cfg, tokens)
    return jnp.sum(v * jnp.arange(16.0)), v

  step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  grads, vectors = step(params, cfg, tokens)
  mesh = sharding.make_mesh(shape)
  specs = sharding.param_specs(params)
  with jax.set_mesh(mesh):
    placed = jax.tree.map(
        lambda x, s: jax.device_put(x, jax.NamedSharding(mesh, s)), params, specs)
    sharded, split = step(placed, cfg, tokens)
  # Sums over 'tensor' run in another order: a few ulp, through three layers.
  np.testing.assert_allclose(split, vectors, atol=3e-6)
  assert split.sharding.spec == jax.P(sharding.BATCH, None)
  for path, want in tables.flatten(grads).items():
    got = tables.flatten(sharded)[path]
    np.testing.assert_allclose(got, want, atol=2e-5 * (1 + np.abs(want).max()),
                               err_msg=path)
    assert got.sharding.is_equivalent_to(
        tables.flatten(placed)[path].sharding, got.ndim), path


LATENT = PoolingConfig(kind='latent_attention', latents=8, heads=2, head_dim=8)


@pytest.mark.parametrize('family, attention, pooling, packed, shape', after(1, [
    ('mpnet', 'bidirectional', LATENT, True, (1, 1, 1, 4)),
    ('gemma3_text', 'causal', PoolingConfig(kind='last'), False, (1, 2, 2, 2)),
    ('mistral', 'causal', PoolingConfig(kind='cls+mean'), True, (1, 1, 1, 2)),
    ('modernbert', 'bidirectional', PoolingConfig(kind='max'), False, (1, 1, 1, 4)),
    ('roberta', 'bidirectional', PoolingConfig(kind='weighted_mean'), True,
     (2, 1, 1, 4)),
    ('bert', 'bidirectional', PoolingConfig(kind='layer_attention', reads='tokens',
                                            latents=8, heads=2, head_dim=8), False,
     (1, 1, 1, 2)),
    ('gemma2', 'bidirectional', PoolingConfig(kind='mean_sqrt'), False, (1, 1, 1, 4)),
    ('olmo2', 'causal', PoolingConfig(), True, (1, 2, 2, 2)),
    ('embedding_gemma2_text', 'bidirectional', PoolingConfig(), True, (2, 2, 1, 2)),
    ('ministral3', 'causal', PoolingConfig(), True, (1, 1, 2, 4)),
    ('phi', 'bidirectional', PoolingConfig(), False, (1, 2, 2, 2)),
    ('smollm3', 'causal', PoolingConfig(), False, (1, 2, 2, 2)),
]))
def test_tokens_over_devices_equal_one(family, attention, pooling, packed, shape):
  """A row's tokens over 2 and 4 devices: its vectors and all gradients are the same."""
  cfg, params = tiny_encoder.model(family, attention=attention, pooling=pooling)
  tokens = tiny_encoder.tokens(8)
  if packed:
    tokens = dataclasses.replace(tokens, segment=(
        np.arange(12)[None] >= np.arange(8)[:, None]).astype(np.int32))

  def loss(params, cfg, tokens):
    v = encoder.encode(params, cfg, tokens)
    return jnp.sum(v * jnp.arange(v.shape[1])), v

  step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  grads, vectors = step(params, cfg, tokens)
  mesh = sharding.make_mesh(shape, jax.devices()[:int(np.prod(shape))])
  with jax.set_mesh(mesh):
    sharded, split = step(sharding.place(params, mesh), cfg, tokens)
  np.testing.assert_allclose(split, vectors, atol=3e-6)
  for path, want in tables.flatten(grads).items():
    np.testing.assert_allclose(
        tables.flatten(sharded)[path], want,
        atol=2e-5 * (1 + np.abs(want).max()), err_msg=path)


def test_rows_that_do_not_split_over_devices_are_refused():
  cfg, params = tiny_encoder.model('mistral')
  with jax.set_mesh(sharding.make_mesh((1, 1, 1, 8))), pytest.raises(
      ValueError, match="12 tokens do not split over the 8.*'sequence'.*of 8"):
    encoder.encode(params, cfg, tiny_encoder.tokens())


def test_more_tokens_than_positions_are_refused():
  """Of a learned table; packed rows, whose positions begin anew, may be wider."""
  cfg, params = tiny_encoder.model('bert')
  wide = tiny_encoder.tokens(1, 66, [66])
  with pytest.raises(ValueError, match='texts of 66 tokens.*64 positions.*max_length'):
    encoder.encode(params, cfg, wide)
  for first, fits in ((33, True), (1, False)):
    packed = dataclasses.replace(
        wide, segment=(np.arange(66)[None] >= first).astype(np.int32))
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match='of 65'):
      jax.eval_shape(lambda p, t=packed: encoder.encode(p, cfg, t), params)


def test_random_parameters_do_not_depend_on_the_mesh():
  cfg = ModelConfig(backbone=presets.tiny('mistral'))
  single = encoder.init_params(cfg, jax.random.key(3), jnp.bfloat16)
  with jax.set_mesh(sharding.make_mesh((2, 2, 2))):
    spread = encoder.init_params(cfg, jax.random.key(3), jnp.bfloat16)
    kernel = spread['backbone']['layers']['mlp']['up']['kernel']
    assert kernel.sharding.spec == jax.P(None, 'fsdp', 'tensor')
  jax.tree.map(np.testing.assert_array_equal, single, spread)
  assert {x.dtype for x in jax.tree.leaves(single)} == {jnp.dtype('bfloat16')}


def test_scan_equals_the_unrolled_layers():
  cfg, params = tiny_encoder.model('mistral')
  tokens = tiny_encoder.tokens()
  backbone = params['backbone']
  x = backbone['embed']['token'][tokens.ids]
  zero = {'embed': backbone['embed'], 'norm': backbone['norm']}
  for i in range(cfg.backbone.num_layers):
    layer = jax.tree.map(lambda p, i=i: p[i:i + 1], backbone['layers'])
    one = dataclasses.replace(cfg, backbone=dataclasses.replace(
        cfg.backbone, num_layers=1, final_norm=False))
    x = _one_layer(one, {**zero, 'layers': layer}, x, tokens)
  scanned = states(params, dataclasses.replace(cfg, backbone=dataclasses.replace(
      cfg.backbone, final_norm=False)), tokens)
  np.testing.assert_allclose(
      np.asarray(x)[tokens.mask], np.asarray(scanned)[tokens.mask], atol=1e-5)


def _one_layer(cfg, backbone, x, tokens):
  """Runs one layer on states x [B,T,D]: they are made the embedding table."""
  rows, length, dim = x.shape
  table = x.reshape(rows * length, dim)
  ids = np.arange(rows * length, dtype=np.int32).reshape(rows, length)
  wide = dataclasses.replace(cfg, backbone=dataclasses.replace(
      cfg.backbone, vocab_size=rows * length))
  params = {'backbone': {**backbone, 'embed': {'token': table}}}
  return encoder.hidden_states(params, wide, dataclasses.replace(tokens, ids=ids))


@pytest.mark.parametrize('remat', after(1, ['dots', 'full', 'residual']))
def test_remat_changes_no_gradient(remat):
  cfg, params = tiny_encoder.model('mistral')
  tokens = tiny_encoder.tokens()

  def grads(cfg):
    return jax.jit(jax.grad(
        lambda p: encoder.encode(p, cfg, tokens)[:, 0].sum()))(params)

  plain, saved = grads(cfg), grads(dataclasses.replace(cfg, remat=remat))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, atol=1e-5 * (1 + np.abs(a).max())), plain, saved)


# Norms before the sublayers, and behind them.
@pytest.mark.thorough
@pytest.mark.parametrize('family', after(1, ['mistral', 'mpnet']))
def test_remat_computes_the_less_again_the_more_it_keeps(family):
  cfg, params = tiny_encoder.model(family)
  tokens = tiny_encoder.tokens(8, 64, [64] * 8)

  def spent(remat):
    this = dataclasses.replace(cfg, remat=remat)
    step = jax.jit(jax.grad(lambda p: encoder.encode(p, this, tokens)[:, 0].sum()))
    return step.lower(params).compile().cost_analysis()['flops']

  full, residual, dots = (spent(remat) for remat in ('full', 'residual', 'dots'))
  assert dots < residual < full


def test_depth_does_not_lengthen_the_program():
  """Layers are scanned: 32 of them are the same program as 4."""
  def size(layers):
    cfg = ModelConfig(backbone=presets.tiny('mistral', num_layers=layers))
    params = encoder.param_shapes(cfg)
    return len(jax.jit(encoder.encode, static_argnums=1).lower(
        params, cfg, tiny_encoder.tokens()).as_text().splitlines())

  assert size(32) == size(4)


def test_bad_arguments_are_named():
  cfg, params = tiny_encoder.model('mistral')
  with pytest.raises(ValueError, match="attention is 'both'; choose causal"):
    encoder.encode(params, cfg, tiny_encoder.tokens(), attention='both')
  with pytest.raises(ValueError, match='prefix'):
    encoder.encode(params, cfg, tiny_encoder.tokens(), attention='prefix')
  with pytest.raises(ValueError, match='prefix'):
    encoder.encode(params, cfg, tiny_encoder.tokens(), prefix=np.zeros(4, np.int32))
  with pytest.raises(ValueError, match=r"preset 'nope' is unknown; choose one of"):
    presets.get('nope')


def test_a_parameter_without_a_rule_is_refused():
  with pytest.raises(ValueError, match="no sharding rule matches parameter 'odd/x'"):
    sharding.param_specs({'odd': {'x': np.zeros(2)}})
