"""Layouts of a family's checkpoints that are not transformers' own today."""

import json

import jax
import numpy as np
import pytest

from jaxembed.convert import from_hf, parity_families, tables
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.models import encoder
from tests.helpers.folders import edit

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


@pytest.mark.parametrize('kind', ['T5ForConditionalGeneration', 'T5Model'])
def test_of_a_t5_with_a_decoder_the_encoder_is_read(tmp_path, kind):
  config = transformers.T5Config(
      vocab_size=99, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=16)
  torch.manual_seed(0)
  getattr(transformers, kind)(config).save_pretrained(tmp_path)
  _agree(tmp_path, transformers.T5EncoderModel.from_pretrained(tmp_path))


@pytest.mark.parametrize(('name', 'nearest'), [
    ('nomic_bertt', 'nomic_bert'), ('deberta', 'bert'), ('T5', 't5'),
    ('llama4', 'llama'), ('xlm_roberta', 'xlm-roberta')])
def test_the_nearest_known_family_is_named(name, nearest):
  with pytest.raises(UnsupportedModel, match=f'nearest that is: {nearest};'):
    tables.config_from_hf({'model_type': name})
