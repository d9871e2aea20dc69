"""Layer choice and token prepending against the layers run one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxembed import bundle, checkpoint, sharding
from jaxembed.config import ModelConfig, ModelSpec, PoolingConfig, PrependConfig
from jaxembed.embedder import Embedder
from jaxembed.models import encoder, presets, training_free
from jaxembed.train import start
from jaxembed.types import Tokens
from tests.helpers import tiny_run
from tests.helpers.tiers import thorough

CFG = ModelConfig(backbone=presets.tiny('mistral', num_layers=4), attention='causal',
                  pooling=PoolingConfig(kind='last'))

encode = jax.jit(encoder.encode, static_argnums=1)
states_of = jax.jit(encoder.hidden_states, static_argnums=1)


@pytest.fixture(scope='module')
def params():
  return encoder.init_params(CFG, jax.random.key(0))


def _tokens(side, first=2):
  rng = np.random.default_rng(0)
  ids = rng.integers(2, 96, (3, 8)).astype(np.int32)
  count = np.array([8, 5, 3])[:, None]
  place = np.arange(8)[None]
  mask = place < count if side == 'right' else place >= 8 - count
  start = mask.argmax(1)
  ids[np.arange(3), start] = first
  return Tokens(ids, mask, mask)


def _layers(params, cfg, tokens, change=lambda i, x: x):
  """Hidden states after every layer, each run by itself: [embeddings, 1, ...].

  The state between layers is fed back as an embedding table.
  """
  backbone = params['backbone']
  x = np.asarray(backbone['embed']['token'])[tokens.ids]
  rows, length, dim = x.shape
  ids = np.arange(rows * length, dtype=np.int32).reshape(rows, length)
  one = dataclasses.replace(cfg, prepend=None, backbone=dataclasses.replace(
      cfg.backbone, num_layers=1, final_norm=False, vocab_size=ids.size))
  states = [x]
  for i in range(cfg.backbone.num_layers):
    x = change(i, np.array(x))
    p = {'embed': {'token': jnp.asarray(x.reshape(-1, dim))},
         'layers': jax.tree.map(lambda w, i=i: w[i:i + 1], backbone['layers'])}
    x = states_of({'backbone': p}, one, dataclasses.replace(tokens, ids=ids))
    states.append(np.asarray(x))
  return states


def test_at_layer_is_that_hidden_state(params):
  tokens = _tokens('right')
  states = _layers(params, CFG, tokens)
  for layer, index in ((2, 2), (-2, 3), (4, 4)):
    p, cfg = training_free.at_layer(params, CFG, layer)
    got = np.asarray(states_of(p, cfg, tokens))
    np.testing.assert_allclose(got[tokens.mask], states[index][tokens.mask], atol=1e-6)
  assert training_free.at_layer(params, CFG, -1) == (params, CFG)
  for layer in (0, 6, -9):
    with pytest.raises(ValueError, match=f'layer {layer} does not exist'):
      training_free.at_layer(params, CFG, layer)


@pytest.mark.parametrize('side', ['right', 'left'])
def test_the_placeholder_takes_the_last_state_within_the_band(params, side):
  p, cfg = training_free.prepend(params, CFG, jax.random.key(1), 1, 3)
  assert cfg.prepend.token_id == 96
  assert p['backbone']['embed']['token'].shape == (97, 32)
  tokens = _tokens(side, first=96)
  first = tokens.mask.argmax(1)
  last = 7 - tokens.mask[:, ::-1].argmax(1)
  rows = np.arange(3)

  def overwrite(i, x):
    if 1 <= i < 3:
      x[rows, first] = x[rows, last]
    return x

  want = _layers(p, cfg, tokens, overwrite)[-1]
  bare, end = training_free.at_layer(p, cfg, 4)
  got = np.asarray(states_of(bare, end, tokens))
  np.testing.assert_allclose(got[tokens.mask], want[tokens.mask], atol=2e-6)
  plain = np.asarray(encode(p, dataclasses.replace(cfg, prepend=None), tokens))
  assert np.abs(np.asarray(encode(p, cfg, tokens)) - plain).max() > 1e-4


def test_an_empty_band_changes_nothing(params):
  p, cfg = training_free.prepend(params, CFG, jax.random.key(1), 2, 2)
  tokens = _tokens('right', first=96)
  np.testing.assert_array_equal(
      encode(p, cfg, tokens),
      encode(p, dataclasses.replace(cfg, prepend=None), tokens))
  with pytest.raises(ValueError, match=r'band 3\.\.9 lies outside 0\.\.4'):
    training_free.prepend(params, CFG, jax.random.key(1), 3, 9)


@pytest.mark.parametrize('reads', ['layers_last', thorough('layers_mean')])
def test_every_layer_is_pooled_inside_the_scan(params, reads):
  """What the head reads is what pooling each hidden state gives; [L,B,T,D] is
  nowhere in the program."""
  cfg = dataclasses.replace(CFG, pooling=PoolingConfig(
      kind='layer_attention', reads=reads, latents=2, heads=2, head_dim=4))
  tokens = _tokens('right')
  states = _layers(params, CFG, tokens)[1:]
  states[-1] = np.asarray(states_of(params, CFG, tokens))
  pick = {'layers_last': lambda x, m: x[m][-1],
          'layers_mean': lambda x, m: x[m].mean(0)}
  want = np.stack([[pick[reads](x[i], tokens.mask[i]) for i in range(3)]
                   for x in states])
  full = {**params, 'pooling': encoder.init_params(cfg, jax.random.key(2))['pooling']}
  _, kept = encoder._backbone(full, cfg, tokens, None, None, None)
  np.testing.assert_allclose(kept, want, atol=2e-6)
  text = jax.jit(encoder.encode, static_argnums=1).lower(full, cfg, tokens).as_text()
  assert '4x3x8x32xf32' not in text


@pytest.mark.thorough
def test_one_field_of_an_experiment_prepends_a_token(minilm, tmp_path):
  cfg = tiny_run.in_folder(tmp_path, minilm, steps=2)
  cfg.model.prepend, cfg.model.eos_text = (1, 2), ' means in one word'
  cfg.stages[0].data.sources[0].query_prompt = 'This sentence : '
  told = start.changes(cfg.model)
  assert any('<PST> is put before every text' in line for line in told)
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  begun = start.with_prompts(start.start(cfg.model, 0, mesh), cfg.stages, print)
  bundle.save_model(tmp_path / 'run', begun)
  checkpoint.save_params(tmp_path / 'run/checkpoints', 1, begun.params)
  model = Embedder.load(tmp_path / 'run')
  assert model.cfg.prepend == PrependConfig(token_id=30522, start=1, stop=2,
                                            text='<PST>')
  assert model.params['backbone']['embed']['token'].shape[0] == 30523

  plain = tokenizers.Tokenizer.from_file(str(minilm / 'tokenizer.json'))
  plain.no_padding()
  before, after = (plain.encode(text, add_special_tokens=False).ids for text in (
      'This sentence : ', 'a cat means in one word'))
  ids = np.array([[101, *before, 30522, *after, 102]], np.int32)
  flags = np.ones(ids.shape, bool)
  np.testing.assert_allclose(
      model.encode_query(['a cat']),
      encoder.encode(model.params, model.cfg, Tokens(ids, flags, flags)), atol=1e-6)
  begun = start.resolve(ModelSpec(source=str(tmp_path / 'run')))
  assert begun.cfg.prepend == model.cfg.prepend
  with pytest.raises(ValueError, match='prepended token in the layers'):
    start.resolve(ModelSpec(source=str(tmp_path / 'run'), prepend=(0, 2)))
