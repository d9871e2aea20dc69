"""Model types of other people's code, and text parts of larger models."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxembed.config import ModelConfig
from jaxembed.convert import from_hf, parity_families, tables
from jaxembed.convert.configs import UnsupportedModel, attention_from_hf, config_from_hf
from jaxembed.convert.families import aliases
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.models import encoder, presets

_SMALL = {'vocab_size': 99, 'hidden_size': 32, 'intermediate_size': 48,
          'num_hidden_layers': 3, 'num_attention_heads': 4, 'num_key_value_heads': 2,
          'head_dim': 16, 'max_position_embeddings': 64, 'pad_token_id': 0}


def _folder(folder, family):
  """A tiny random model, as config.json says and without any other file."""
  folder.mkdir()
  cfg = ModelConfig(backbone=presets.tiny(family))
  save_file(tables.to_hf(encoder.init_params(cfg, jax.random.key(0)), cfg),
            folder / 'model.safetensors')
  return folder, tables.config_to_hf(cfg.backbone)


def _write(folder, config):
  (folder / 'config.json').write_text(json.dumps(config))


def test_a_model_of_own_code_is_its_family_both_ways(tmp_path):
  folder, config = _folder(tmp_path / 'model', 'llama')
  _write(folder, config | {'is_causal': False})
  want = from_hf.load(folder, weights=False)
  _write(folder, config | {
      'model_type': 'llama_bidirec', 'architectures': ['LlamaBidirectionalModel'],
      'auto_map': {'AutoModel': 'code.LlamaBidirectionalModel'}, 'temperature': 0.02,
      'pooling': 'avg'})
  (folder / 'code.py').write_text('raise SystemExit("code ran")')
  with pytest.warns(UserWarning, match='computed as llama that attends both ways'):
    found = from_hf.load(folder)
  assert found.cfg == want.cfg and found.cfg.attention == 'bidirectional'
  assert found.cfg.pooling.kind == 'mean'
  _write(folder, found.hf_config | {'pooling': 'last'})
  assert from_hf.load(folder, weights=False).cfg.pooling.kind == 'last'


@pytest.mark.parametrize(('config', 'message'), [
    ({'model_type': 'llama_bidirec', 'pooling': 'weighted_avg'}, 'pooling .weighted_a'),
    ({'model_type': 'ministral3_bidirec', 'sliding_window': 6}, 'sliding_window=6'),
    ({'model_type': 'bidirectional_pplx_qwen3', 'use_bidirectional_attention': False},
     'write model_type "qwen3" if it is causal'),
    ({'model_type': 'llama_bidirect'}, 'nearest that is: llama_bidirec;'),
    ({'model_type': 'qwen3_next'}, 'nearest that is: qwen3'),
    ({'model_type': 'qwen3_moe', 'mlp_only_layers': [1]}, 'mlp_only_layers is not'),
    ({'model_type': 'qwen3_moe', 'decoder_sparse_step': 2}, 'decoder_sparse_step is'),
    ({'model_type': 'lfm2'}, "'lfm2' is not supported: .*convolutions"),
    ({'model_type': 'embedding_gemma2_text', 'per_layer_config': {'2': {'x': 1}}},
     "per_layer_config: 2: .*'x'.* is not supported"),
    ({'model_type': 'embedding_gemma2_text', 'num_hidden_layers': 4,
      'sliding_window_pattern': 2, 'per_layer_config': {'1': {'head_dim': 8}}},
     'heads of several sizes'),
    ({'model_type': 'gemma3'}, 'lacks text_config'),
    ({'model_type': 'gemma3', 'text_config': []}, 'text_config is .*an object'),
    ({'model_type': 'mistral3', 'text_config': {'model_type': 'llama'}},
     "text_config: model_type 'llama' is not supported in a mistral3"),
    ({'model_type': 'mistral3', 'text_config': {'model_type': 'mistral'},
      'quantization_config': {'quant_method': 'fp8'}}, 'quantization_config=.*fp8')])
def test_near_misses_are_refused_by_name(config, message):
  config = {**_SMALL, **config}
  with pytest.raises(UnsupportedModel, match=message):
    aliases.pooling(config)
    config_from_hf(config)


@pytest.mark.parametrize('prefix', ['language_model.model.', 'model.language_model.'])
def test_the_text_part_of_a_larger_model(tmp_path, prefix):
  """In both layouts of names; other parts pass, a tensor of nobody's does not."""
  folder, config = _folder(tmp_path / 'model', 'gemma3_text')
  _write(folder, config)
  want = from_hf.load(folder)
  text = load_file(folder / 'model.safetensors')
  outer = prefix.partition('.')[0] + '.' if prefix.startswith('model') else ''
  weights = {prefix + name: x for name, x in text.items()} | {
      f'{outer}vision_tower.embeddings.weight': np.zeros(3, np.float32),
      f'{outer}multi_modal_projector.weight': np.zeros(3, np.float32)}
  save_file(weights, folder / 'model.safetensors')
  config.pop('model_type')  # a Gemma 3 does not name its text part's
  _write(folder, {'model_type': 'gemma3', 'text_config': config, 'vision_config': {}})
  with pytest.warns(UserWarning, match='of the gemma3 only its text part is read'):
    found = from_hf.load(folder)
  assert found.cfg == dataclasses.replace(want.cfg, pooling=found.cfg.pooling)
  jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
  save_file(weights | {'audio_tower.weight': np.zeros(3, np.float32)},
            folder / 'model.safetensors')
  with pytest.raises(BadCheckpoint, match='left over .*audio_tower.weight'):
    from_hf.load(folder)


def test_sizes_that_a_gemma_3_leaves_out():
  """As the released checkpoints do: 4B and above name four sizes."""
  transformers = pytest.importorskip('transformers')
  part = {'hidden_size': 64, 'intermediate_size': 96, 'num_hidden_layers': 6,
          'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}, 'sliding_window': 64}
  config = {'model_type': 'gemma3', 'text_config': part}
  whole = transformers.AutoConfig.for_model(**config).text_config.to_dict()
  assert config_from_hf(config) == config_from_hf(whole)
  assert attention_from_hf(config) == 'causal'


@pytest.mark.thorough
@pytest.mark.parametrize(('kind', 'text', 'vision'), [
    ('gemma3', {'model_type': 'gemma3_text', 'sliding_window': 6, 'layer_types': [
        'sliding_attention', 'full_attention', 'sliding_attention']},
     'siglip_vision_model'),
    ('mistral3', {'model_type': 'ministral3', 'rope_parameters': {
        'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0,
        'original_max_position_embeddings': 8, 'llama_4_scaling_beta': 0.1}},
     'pixtral')])
@pytest.mark.parametrize('whole', [False, True])
def test_texts_in_a_larger_model_are_torchs(tmp_path, kind, text, vision, whole):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(
      kind, text_config=_SMALL | text, image_token_id=98, vision_config={
          'model_type': vision, 'hidden_size': 16, 'intermediate_size': 24,
          'num_hidden_layers': 1, 'num_attention_heads': 2, 'image_size': 28,
          'patch_size': 14})
  model = (transformers.AutoModelForImageTextToText if whole
           else transformers.AutoModel).from_config(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(torch.randn_like(p) * 0.1)
  model.save_pretrained(tmp_path)
  loaded = from_hf.load(tmp_path)
  tokens = parity_families.ragged(97, 'right')
  with torch.no_grad():
    want = (model.model if whole else model)(
        input_ids=torch.tensor(tokens.ids).long(),
        attention_mask=torch.tensor(tokens.mask).long()).last_hidden_state.numpy()
  ours = np.asarray(encoder.hidden_states(loaded.params, loaded.cfg, tokens))
  assert np.abs(ours - want)[tokens.mask].max() <= 1e-5 * np.abs(want).max()
