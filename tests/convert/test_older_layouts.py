"""Layouts of a family's checkpoints that are not transformers' own today."""

import json

import jax
import numpy as np
import pytest

from jaxembed.convert import from_hf, parity_families, tables
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.models import encoder
from tests.helpers.folders import edit
from tests.helpers.tiers import thorough

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.filterwarnings('ignore:.*no modules.json')

_SIZES = {'vocab_size': 99, 'hidden_size': 32, 'intermediate_size': 48,
          'num_hidden_layers': 2, 'num_attention_heads': 4,
          'max_position_embeddings': 64}
_states = jax.jit(encoder.hidden_states, static_argnums=1)


def _agree(folder, model):
  """Ours of the folder, and torch's of the model, on text with padding."""
  loaded = from_hf.load(folder)
  tokens = parity_families.ragged(99, 'right')
  with torch.no_grad():
    want = model.eval()(
        input_ids=torch.from_numpy(tokens.ids).long(),
        attention_mask=torch.from_numpy(tokens.mask).long()).last_hidden_state.numpy()
  got = np.asarray(_states(loaded.params, loaded.cfg, tokens))
  difference = np.abs(got - want)[tokens.mask].max()
  assert difference <= 1e-5 * np.abs(want[tokens.mask]).max()


def _nomic(folder):
  """A checkpoint as the code of nomic-embed-text-v1.5 writes it: GPT-2's names."""
  parity_families.build(folder, 'nomic_bert', _SIZES)
  model = transformers.NomicBertModel.from_pretrained(folder)
  older = {
      'model_type': 'nomic_bert', 'architectures': ['NomicBertModel'],
      'activation_function': 'swiglu', 'causal': False, 'layer_norm_epsilon': 1e-12,
      'mlp_fc1_bias': False, 'mlp_fc2_bias': False, 'n_embd': 32, 'n_head': 4,
      'n_inner': 48, 'n_layer': 2, 'n_positions': 64, 'parallel_block': False,
      'prenorm': False, 'qkv_proj_bias': False, 'rotary_emb_base': 1000,
      'rotary_emb_fraction': 1.0, 'rotary_emb_interleaved': False,
      'rotary_emb_scale_base': None, 'rotary_scaling_factor': None,
      'type_vocab_size': 2, 'use_rms_norm': False, 'vocab_size': 99}
  (folder / 'config.json').write_text(json.dumps(older))
  return model


def test_nomic_with_the_settings_of_its_own_code(tmp_path):
  model = _nomic(tmp_path)
  _agree(tmp_path, model)
  written = tables.config_to_hf(from_hf.load(tmp_path, weights=False).cfg.backbone)
  again = transformers.AutoConfig.for_model(**written)
  assert tables.config_from_hf(again.to_dict()) == tables.config_from_hf(
      model.config.to_dict())


@pytest.mark.parametrize('field', [
    {'rotary_scaling_factor': 2.0}, {'rotary_emb_fraction': None}, {'prenorm': True},
    {'qkv_proj_bias': True}, {'num_experts': 8}, {'activation_function': 'geglu'}])
def test_nomic_of_another_kind_is_refused_by_its_field(tmp_path, field):
  _nomic(tmp_path)
  edit(tmp_path / 'config.json', **field)
  with pytest.raises(UnsupportedModel, match=next(iter(field))):
    from_hf.load(tmp_path, weights=False)


def test_gte_with_the_settings_of_its_own_code(tmp_path):
  """ntk: the base times the factor, all frequencies over factor^(2/width)."""
  parity_families.build(tmp_path, 'gte', _SIZES)
  model = transformers.GteModel.from_pretrained(tmp_path)
  base, factor, width = 500.0, 8.0, 8
  model.rotary_emb.inv_freq.copy_(torch.tensor(
      (base * factor) ** -(np.arange(0, width, 2) / width) / factor ** (2 / width)))
  (tmp_path / 'config.json').write_text(json.dumps(_SIZES | {
      'model_type': 'new', 'architectures': ['NewModel'], 'type_vocab_size': 1,
      'hidden_act': 'gelu', 'layer_norm_type': 'layer_norm', 'layer_norm_eps': 1e-12,
      'pack_qkv': True, 'position_embedding_type': 'rope', 'rope_theta': base,
      'rope_scaling': {'type': 'ntk', 'factor': factor}, 'logn_attention_scale': False,
      'unpad_inputs': False, 'use_memory_efficient_attention': False}))
  _agree(tmp_path, model)


@pytest.mark.parametrize('kind', ['T5ForConditionalGeneration', thorough('T5Model')])
def test_of_a_t5_with_a_decoder_the_encoder_is_read(tmp_path, kind):
  config = transformers.T5Config(
      vocab_size=99, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=16)
  torch.manual_seed(0)
  getattr(transformers, kind)(config).save_pretrained(tmp_path)
  _agree(tmp_path, transformers.T5EncoderModel.from_pretrained(tmp_path))


@pytest.mark.parametrize(('name', 'nearest'), [
    ('nomic_bertt', 'nomic_bert'), ('deberta', 'deberta-v2'), ('T5', 't5'),
    ('llama4', 'llama'), ('xlm_roberta', 'xlm-roberta')])
def test_the_nearest_known_family_is_named(name, nearest):
  with pytest.raises(UnsupportedModel, match=f'nearest that is: {nearest};'):
    tables.config_from_hf({'model_type': name})


_TASKS = ['retrieval.query', 'separation', 'text-matching']


def _jina_v3(folder, task):
  """A folder as the code of jina-embeddings-v3 writes it, and the model of a task."""
  import safetensors.torch as safe

  parity_families.build(folder / 'plain', 'jina_embeddings_v3', _SIZES)
  tensors = safe.load_file(folder / 'plain/model.safetensors')
  merged, stored, rank, alpha = {}, {}, 2, 3
  for name, x in tensors.items():
    merged[name] = x
    if x.ndim != 2:  # norms and biases have no adapters
      stored[f'roberta.{name}'] = x
      continue
    at = f'roberta.{name.removesuffix(".weight")}.parametrizations.weight.'
    narrow = [torch.randn(3, x.shape[0], rank) * 0.3, torch.randn(3, rank, x.shape[1])]
    stored[f'{at}original'] = x
    for letter, part in zip('AB' if 'embeddings' in name else 'BA', narrow):
      stored[f'{at}0.lora_{letter}'] = part
    if task is not None:
      merged[name] = x + narrow[0][task] @ narrow[1][task] * (alpha / rank)
  safe.save_file(stored, folder / 'model.safetensors')
  safe.save_file(merged, folder / 'plain/model.safetensors', {'format': 'pt'})
  (folder / 'config.json').write_text(json.dumps(_SIZES | {
      'model_type': 'xlm-roberta', 'architectures': ['XLMRobertaModel'],
      'position_embedding_type': 'rotary', 'rotary_emb_base': 20000.0,
      'type_vocab_size': 1, 'layer_norm_eps': 1e-5, 'hidden_act': 'gelu',
      'lora_adaptations': _TASKS, 'lora_rank': rank, 'lora_alpha': alpha,
      'use_flash_attn': True, 'emb_pooler': 'mean', 'pad_token_id': 1}))
  (folder / 'modules.json').write_text(json.dumps([
      {'idx': 0, 'name': 'transformer', 'path': '', 'type': 'custom_st.Transformer',
       'kwargs': ['task']},
      {'idx': 1, 'name': 'pooler', 'path': '1_Pooling',
       'type': 'sentence_transformers.models.Pooling'}]))
  (folder / '1_Pooling').mkdir()
  (folder / '1_Pooling/config.json').write_text(json.dumps({
      'word_embedding_dimension': 32, 'pooling_mode_mean_tokens': True}))
  return transformers.JinaEmbeddingsV3Model.from_pretrained(folder / 'plain')


@pytest.mark.filterwarnings('ignore:.*adapters of its tasks are left out')
@pytest.mark.parametrize('task', [None, 2])
def test_the_adapters_of_a_task_are_merged_by_choice(tmp_path, task):
  model = _jina_v3(tmp_path, task)
  _agree(f'{tmp_path}#{_TASKS[task]}' if task else tmp_path, model)


def test_a_task_that_the_model_lacks_is_refused(tmp_path):
  _jina_v3(tmp_path, None)
  with pytest.raises(UnsupportedModel, match="'sorting' is unknown; known: retrieval"):
    from_hf.load(f'{tmp_path}#sorting', weights=False)
  with pytest.raises(UnsupportedModel, match='it has no adapters of tasks'):
    from_hf.load(f'{tmp_path}/plain#separation', weights=False)
  with pytest.warns(UserWarning, match='left out.*SOURCE#TASK.*: retrieval.query, sep'):
    from_hf.load(tmp_path, weights=False)
  edit(tmp_path / 'config.json', lora_rank=3)
  with pytest.raises(ValueError, match='3 tasks of rank 3 and a matrix'):
    from_hf.load(f'{tmp_path}#separation')
