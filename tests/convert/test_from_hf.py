"""Weights in: real and random folders, and everything that can be wrong."""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import torch

from jaxembed import sharding
from jaxembed.config import DenseConfig, ModelConfig
from jaxembed.convert import from_hf, modules, tables
from jaxembed.convert.configs import UnsupportedModel
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.models import encoder, presets
from jaxembed.types import Tokens


@pytest.fixture
def folder(tmp_path):
  """A tiny Mistral, written by ourselves."""
  return _write(tmp_path / 'model')


def _write(folder, family='mistral', shards=1):
  folder.mkdir()
  cfg = ModelConfig(backbone=presets.tiny(family))
  weights = tables.to_hf(encoder.init_params(cfg, jax.random.key(0)), cfg)
  (folder / 'config.json').write_text(json.dumps(tables.config_to_hf(cfg.backbone)))
  if shards == 1:
    save_file(weights, folder / 'model.safetensors')
    return folder
  names, index = list(weights), {}
  for i in range(shards):
    file = f'model-{i + 1:05}-of-{shards:05}.safetensors'
    save_file({n: weights[n] for n in names[i::shards]}, folder / file)
    index |= dict.fromkeys(names[i::shards], file)
  (folder / 'model.safetensors.index.json').write_text(
      json.dumps({'metadata': {}, 'weight_map': index}))
  return folder


def _edit(folder, **fields):
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _rewrite(folder, change):
  weights = load_file(folder / 'model.safetensors')
  change(weights)
  save_file(weights, folder / 'model.safetensors')


# --- What is read -------------------------------------------------------------


def test_minilm_is_what_torch_says(minilm):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  loaded = from_hf.load(minilm)
  assert loaded.cfg.pooling.kind == 'mean' and loaded.cfg.normalize
  assert loaded.cfg.max_length == 256
  model = transformers.AutoModel.from_pretrained(minilm).eval()
  rng = np.random.default_rng(0)
  ids = rng.integers(1000, 30000, (6, 32)).astype(np.int32)
  count = np.array([32, 1, 5, 17, 31, 9])[:, None]
  run = jax.jit(encoder.hidden_states, static_argnums=1)
  for mask in (np.arange(32) < count, np.arange(32) >= 32 - count):
    with torch.no_grad():
      theirs = model(input_ids=torch.tensor(ids).long(),
                     attention_mask=torch.tensor(mask).long()
                     ).last_hidden_state.numpy()
    ours = np.asarray(run(loaded.params, loaded.cfg, Tokens(ids, mask, mask)))
    assert np.abs(ours - theirs)[mask].max() <= 2e-5 * np.abs(theirs[mask]).max()


def test_shards_equal_one_file(folder, tmp_path):
  single = from_hf.load(folder)
  sharded = from_hf.load(_write(tmp_path / 'sharded', shards=3))
  jax.tree.map(np.testing.assert_array_equal, single.params, sharded.params)


@pytest.mark.parametrize('family', ['mistral', 'phi3', 'modernbert'])
@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 8, 1), (2, 4, 1)])
def test_loads_straight_into_shardings(tmp_path, family, shape):
  folder = _write(tmp_path / 'model', family)
  single = from_hf.load(folder)
  mesh = sharding.make_mesh(shape)
  spread = from_hf.load(folder, mesh=mesh)
  jax.tree.map(np.testing.assert_array_equal, single.params, spread.params)
  specs = sharding.param_specs(spread.params)
  jax.tree.map(lambda x, s: _same(x.sharding.spec, s), spread.params, specs)


def _same(a, b):
  assert a == b


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_dtype_is_the_callers(folder, dtype):
  loaded = from_hf.load(folder, dtype=dtype)
  wide = from_hf.load(folder)
  assert loaded.cfg.dtype == dtype
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(dtype)),
               loaded.params, wide.params)


@pytest.mark.parametrize('prefix', ['model.', 'encoder.', 'module.model.'])
def test_names_of_language_models_and_wrappers_are_understood(folder, prefix):
  want = from_hf.load(folder).params

  def change(weights):
    for name in list(weights):
      weights[f'{prefix}{name}'] = weights.pop(name)
    weights['lm_head.weight'] = np.zeros((4, 4), np.float32)

  _rewrite(folder, change)
  jax.tree.map(np.testing.assert_array_equal, from_hf.load(folder).params, want)


def test_gamma_and_beta_of_tensorflow_are_weight_and_bias(tmp_path):
  folder = _write(tmp_path / 'bert', 'bert')
  want = from_hf.load(folder).params

  def change(weights):
    for name in list(weights):
      new = name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
          'LayerNorm.bias', 'LayerNorm.beta')
      weights['bert.' + new] = weights.pop(name)

  _rewrite(folder, change)
  jax.tree.map(np.testing.assert_array_equal, from_hf.load(folder).params, want)
  _rewrite(folder, lambda w: w.update({
      'embeddings.LayerNorm.weight': w['bert.embeddings.LayerNorm.gamma'] + 1}))
  with pytest.raises(BadCheckpoint, match='has embeddings.LayerNorm.weight twice'):
    from_hf.load(folder)


def test_one_file_is_read_before_an_older_index(folder, tmp_path):
  want = from_hf.load(folder).params
  old = _write(tmp_path / 'old', shards=2)
  for file in old.glob('model*'):
    shutil.copy(file, folder)
  _rewrite(folder, lambda w: w.update({'norm.weight': w['norm.weight'] + 1}))
  got = from_hf.load(folder).params
  np.testing.assert_array_equal(got['backbone']['norm']['scale'],
                                want['backbone']['norm']['scale'] + 1)


@pytest.mark.parametrize('index', [
    '[', '{}', '{"weight_map": {}}', '{"weight_map": {"norm.weight": "config.json"}}',
    '{"weight_map": {"norm.weight": "../model.safetensors"}}'])
def test_an_index_beside_one_file_is_of_shards_all_the_same(folder, index):
  (folder / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(BadCheckpoint, match='index.json|lies outside'):
    from_hf.load(folder)


@pytest.mark.parametrize(('fields', 'attention', 'pooling'), [
    ({}, 'causal', 'mean'),  # the base model, as AutoModel saves it
    ({'architectures': ['MistralForCausalLM']}, 'causal', 'last'),
    ({'architectures': ['MistralForCausalLM'], 'is_causal': False},
     'bidirectional', 'mean')])
def test_plain_folders_pool_by_architecture(folder, fields, attention, pooling):
  """tests/convert/test_folders.py has sentence-transformers say the same."""
  _edit(folder, **fields)
  cfg = from_hf.load(folder).cfg
  assert (cfg.attention, cfg.pooling.kind, cfg.normalize) == (attention, pooling, True)


# --- sentence-transformers layouts --------------------------------------------


def _modules(folder, *entries):
  (folder / 'modules.json').write_text(json.dumps([
      {'idx': i, 'name': str(i), 'path': path, 'type': kind}
      for i, (path, kind) in enumerate(entries)]))


def _pooling(folder, **fields):
  (folder / '1_Pooling').mkdir(exist_ok=True)
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(fields))


_OLD = 'sentence_transformers.models.'
_NEW = 'sentence_transformers.base.modules.'


@pytest.mark.parametrize(('key', 'kind'), [
    ('pooling_mode_cls_token', 'cls'), ('pooling_mode_mean_tokens', 'mean'),
    ('pooling_mode_max_tokens', 'max'), ('pooling_mode_lasttoken', 'last'),
    ('pooling_mode_weightedmean_tokens', 'weighted_mean')])
def test_legacy_layout(folder, key, kind):
  _modules(folder, ('', _OLD + 'Transformer'), ('1_Pooling', _OLD + 'Pooling'))
  _pooling(folder, word_embedding_dimension=32, **{key: True})
  (folder / 'sentence_bert_config.json').write_text('{"max_seq_length": 48}')
  cfg = from_hf.load(folder).cfg
  assert (cfg.pooling.kind, cfg.normalize, cfg.max_length) == (kind, False, 48)


def test_new_layout_with_dense(folder):
  _modules(folder, ('', _NEW + 'transformer.Transformer'),
           ('1_Pooling', 'sentence_transformers.sentence_transformer.modules.'
            'pooling.Pooling'),
           ('2_Dense', _NEW + 'dense.Dense'),
           ('3_Normalize', _NEW + 'normalize.Normalize'))
  _pooling(folder, embedding_dimension=32, pooling_mode='mean')
  (folder / 'tokenizer_config.json').write_text('{"model_max_length": 40}')
  (folder / '2_Dense').mkdir()
  (folder / '2_Dense' / 'config.json').write_text(json.dumps(
      {'in_features': 32, 'out_features': 8, 'bias': True,
       'activation_function': 'torch.nn.modules.activation.Tanh'}))
  weight = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
  save_file({'linear.weight': weight, 'linear.bias': np.arange(8, dtype=np.float32)},
            folder / '2_Dense' / 'model.safetensors')
  loaded = from_hf.load(folder)
  assert loaded.cfg.dense == (DenseConfig(features=8, activation='tanh'),)
  assert loaded.cfg.embedding_dim == 8 and loaded.cfg.normalize
  assert loaded.cfg.max_length == 40
  np.testing.assert_array_equal(loaded.params['dense']['0']['kernel'], weight.T)


def test_backbone_in_a_subfolder(folder, tmp_path):
  root = tmp_path / 'root'
  root.mkdir()
  shutil.move(folder, root / '0_Transformer')
  _modules(root, ('0_Transformer', _OLD + 'Transformer'),
           ('1_Pooling', _OLD + 'Pooling'))
  _pooling(root, word_embedding_dimension=32, pooling_mode_mean_tokens=True)
  loaded = from_hf.load(root)
  assert loaded.folder == root
  assert loaded.backbone_folder == root / '0_Transformer'


def test_unknown_poolings_are_refused(folder):
  _modules(folder, ('', _OLD + 'Transformer'), ('1_Pooling', _OLD + 'Pooling'))
  _pooling(folder, embedding_dimension=32, pooling_mode='median')
  with pytest.raises(UnsupportedModel, match="pooling_mode 'median'"):
    from_hf.load(folder)


def test_other_modules_are_refused(folder):
  _modules(folder, ('', _OLD + 'Transformer'), ('1_CNN', _OLD + 'CNN'))
  with pytest.raises(UnsupportedModel, match=r'models\.CNN'):
    modules.read(folder)


# --- Bad input ----------------------------------------------------------------


def test_every_tensor_that_does_not_fit_is_listed_at_once(folder):
  def change(weights):
    del weights['norm.weight']
    weights['surprise'] = np.zeros(3, np.float32)
    weights['embed_tokens.weight'] = weights['embed_tokens.weight'][:-1]

  _rewrite(folder, change)
  with pytest.raises(BadCheckpoint) as e:
    from_hf.load(folder)
  for part in ('missing (1): norm.weight', 'left over (1): surprise',
               'embed_tokens.weight is [95, 32], not [96, 32]', 'Nothing was loaded'):
    assert part in str(e.value)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'model_type': 'mamba'}, "model_type 'mamba' is not supported; known: albert"),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'rope_parameters': {'rope_type': 'dynamic'}}, "rope_type 'dynamic'"),
    ({'hidden_act': 'xielu'}, "activation 'xielu'"),
    ({'layer_types': ['linear_attention'] * 3}, 'linear_attention'),
    ({'hidden_size': None}, "lacks 'hidden_size'")])
def test_unsupported_configurations_are_named(folder, fields, message):
  _edit(folder, **fields)
  with pytest.raises(UnsupportedModel, match=message):
    from_hf.load(folder)


def _truncate(file):
  file.write_bytes(file.read_bytes()[:-10])


def _garble(file):
  data = file.read_bytes()
  file.write_bytes(data[:8] + b'\xff' * 20 + data[28:])


def _lie(file):
  file.write_bytes(struct.pack('<Q', 1 << 60) + b'{}')


@pytest.mark.parametrize(('damage', 'message'), [
    (_truncate, 'truncated or corrupt'), (_garble, 'the header of .* is no JSON'),
    (_lie, 'truncated or no safetensors'), (lambda f: f.write_bytes(b''), 'truncated'),
])
def test_damaged_files(folder, damage, message):
  damage(folder / 'model.safetensors')
  with pytest.raises(BadCheckpoint, match=message):
    from_hf.load(folder)


def _index(folder):
  return folder / 'model.safetensors.index.json'


def test_damaged_indexes(tmp_path):
  folder = _write(tmp_path / 'model', shards=2)
  (folder / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(BadCheckpoint, match=r'shard model-00002-of-00002.* is missing'):
    from_hf.load(folder)
  index = json.loads(_index(folder).read_text())
  index['weight_map'] = dict.fromkeys(index['weight_map'], '../elsewhere.safetensors')
  _index(folder).write_text(json.dumps(index))
  with pytest.raises(BadCheckpoint, match='lies outside'):
    from_hf.load(folder)
  _index(folder).write_text('[')
  with pytest.raises(BadCheckpoint, match='index.json is no plain JSON'):
    from_hf.load(folder)
  _index(folder).unlink()
  with pytest.raises(BadCheckpoint, match='model-00001-of-00002.* without'):
    from_hf.load(folder)


def test_pickled_weights_are_refused_with_a_way_out_that_works(folder):
  weights = load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  torch.save({k: torch.tensor(v) for k, v in weights.items()},
             folder / 'pytorch_model.bin')
  with pytest.raises(BadCheckpoint, match='may run code') as e:
    from_hf.load(folder)
  exec(str(e.value).partition('python -c "')[2].removesuffix('"'), {})
  written = load_file(folder / 'model.safetensors')
  assert {k: v.tobytes() for k, v in written.items()} == {
      k: v.tobytes() for k, v in weights.items()}


def test_modules_outside_the_folder_are_refused(folder):
  _modules(folder, ('', _OLD + 'Transformer'), ('../x', _OLD + 'Pooling'))
  with pytest.raises(BadCheckpoint, match='lies outside'):
    from_hf.load(folder)


def test_offline_hub_is_explained():
  with pytest.raises(FileNotFoundError, match='hub did not give it'):
    from_hf.load('some-org/some-model')
  with pytest.raises(FileNotFoundError, match='no folder here, and no hub id'):
    from_hf.load('/no/such/folder')


def test_compiles_from_shapes_alone(folder):
  """param_shapes is the tree that load returns."""
  loaded = from_hf.load(folder, dtype=jnp.bfloat16)
  shapes = encoder.param_shapes(loaded.cfg, jnp.bfloat16)
  jax.tree.map(lambda x, s: _same((x.shape, x.dtype), (s.shape, s.dtype)),
               loaded.params, shapes)
