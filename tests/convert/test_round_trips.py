"""Export, open, export again: every file of the folder has the same bytes.

The check of vectors is left out here: it is of one folder, and these laws are of two.
"""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.convert import exporters, parity, parity_families
from jaxembed.convert.families import FAMILIES
from jaxembed.models import encoder, lora, presets, training_free
from tests.helpers import folders
from tests.helpers.tiers import after

_HEAD = {'latents': 4, 'heads': 2, 'head_dim': 8, 'ff_mult': 1}
_STACK = (config.DenseConfig(features=24, activation='tanh', residual=True),
          config.DenseConfig(kind='layer_norm', features=24),
          config.DenseConfig(features=16, bias=False, normalize_input=True))
_CARD = {'license': 'mit', 'language': ['de', 'en'], 'base_model': 'org/name',
         'datasets': ['org/pairs']}


def pooled(kind, **fields):
  return {'pooling': config.PoolingConfig(kind=kind, **fields)}


# What a folder has to say -> (family, fields of ModelConfig, fields of Bundle).
MODELS = {
    'mean': ('bert', {}, {}),
    'latent attention': (
        'mistral', pooled('latent_attention', **_HEAD) | {'prompt_pooling': 'exclude'},
        {'prompts': {'query': 'Frage: ', 'document': ''}}),
    'last token': ('mistral', pooled('last') | {'attention': 'causal'}, {}),
    'first token': ('bert', pooled('cls') | {'max_length': 17, 'lower_case': True}, {}),
    'largest': ('bert', pooled('max') | {'normalize': False},
                {'similarity_fn_name': 'dot'}),
    'weighted mean': ('qwen3', pooled('weighted_mean') | {'attention': 'causal'}, {}),
    'sum over a root': ('bert', pooled('mean_sqrt'), {'truncate_dim': 8}),
    'two side by side': ('bert', pooled('mean+cls'), {}),
    'two in another order': ('bert', pooled('mean_sqrt+cls'), {}),
    'weighted layers': ('bert', pooled('weighted_layers', options=(('start', 1),)), {}),
    'weighted layers, the first token': (
        'bert', pooled('weighted_layers', options=(('start', 2), ('pool', 'cls'))), {}),
    'layer attention': ('bert', pooled('layer_attention', **_HEAD), {}),
    'layer attention of last tokens': (
        'qwen2', pooled('layer_attention', reads='layers_last', **_HEAD), {}),
    # Read as two-way it has another window, which its config.json cannot say beside.
    'layer attention of a decoder with windows': ('gemma3_text', pooled(
        'layer_attention', **_HEAD) | {'attention': 'causal'}, {}),
    'dense layers': ('bert', {'dense': _STACK}, {}),
    'dense layers, then no length': ('bert', {'dense': _STACK, 'normalize': False}, {}),
    'a token behind every text': ('mistral', {'eos_text': '</s>'},
                                  {'prompts': {'query': 'ask: ', 'ask': 'x'},
                                   'default_prompt_name': 'ask'}),
    'bfloat16': ('gemma3_text', {'dtype': 'bfloat16'}, {}),
    'float16': ('modernbert', {'dtype': 'float16'}, {}),
}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp('source')
  folders.words('<s> $A </s>', cls_token='<s>', sep_token='</s>').save_pretrained(
      folder)
  return folder


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
  """Checks give one report: cards are then compared as well."""
  report = {'told': 'equal', 'max_difference': 0.0, 'versions': parity.versions() | {
      'jax': jax.__version__}, 'tokens': 1, 'dims': 1}
  for name, known in exporters.FORMATS.items():
    monkeypatch.setitem(exporters.FORMATS, name, dataclasses.replace(
        known, expected=None, check=lambda folder, model: report))


def _drawn(cfg: config.ModelConfig):
  """Parameters of which no two are alike, in the dtype of `cfg`."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), x.dtype),
                      encoder.param_shapes(cfg, cfg.dtype))


def _model(source, family='bert', fields=(), given=()) -> bundle.Bundle:
  cfg = config.ModelConfig(
      backbone=presets.tiny(family, vocab_size=320),
      **{'max_length': 32} | dict(fields))
  return bundle.Bundle(params=_drawn(cfg), cfg=cfg, tokenizer_folder=source,
                       card=_CARD, **dict(given))


def _files(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes()
          for p in folder.rglob('*') if p.is_file()}


def _returns(model, place, format='sentence-transformers', **opened) -> bundle.Bundle:
  """The model that comes back twice, from folders whose files are equal."""
  exporters.export(model, place / 'one/model', format)
  back = bundle.open(place / 'one/model', **opened)
  exporters.export(back, place / 'two/model', format)
  one, two = _files(place / 'one/model'), _files(place / 'two/model')
  if format == 'huggingface':  # it has no place for pooling and prompts, the card has
    del one['README.md'], two['README.md']
  assert one.keys() == two.keys()
  for name, data in one.items():
    assert data == two[name], name
  return back


@pytest.mark.parametrize('name, format', after(3, [
    *((name, 'sentence-transformers') for name in MODELS),
    *((name, 'sentence-transformers-new') for name in MODELS),
    *((name, 'huggingface') for name in (
        'mean', 'last token', 'a token behind every text', 'bfloat16'))]))
def test_folders_come_back_byte_for_byte(name, format, source, tmp_path):
  family, fields, given = MODELS[name]
  model = _model(source, family, fields, given)
  _returns(model, tmp_path, format, dtype=model.cfg.dtype)


@pytest.mark.thorough
@pytest.mark.parametrize('family', sorted(f for f in FAMILIES if FAMILIES[f].cases))
def test_every_family_comes_back_byte_for_byte(family, source, tmp_path):
  """What transformers saved, with its own config.json."""
  fields = dict(next(iter(FAMILIES[family].cases.values()))) | {
      'vocab_size': 320, 'pad_token_id': 0}
  (tmp_path / 'saved').mkdir()
  parity_families.build(tmp_path / 'saved', family, fields)
  saved = bundle.open(tmp_path / 'saved')
  back = _returns(dataclasses.replace(saved, tokenizer_folder=source), tmp_path)
  assert back.cfg.backbone == saved.cfg.backbone
  jax.tree.map(np.testing.assert_array_equal, back.params, saved.params)


@pytest.mark.parametrize('text', after(1, ['', 'Frage: ']))
def test_the_published_layout_of_nv_embed_comes_back(text, source, tmp_path):
  model = _model(source, 'mistral', pooled('latent_attention', **_HEAD | {
      'ff_mult': 4}) | {'prompt_pooling': 'nv_embed', 'eos_text': '</s>'},
      {'prompts': {'query': text} if text else {}})
  back = _returns(model, tmp_path, 'nv-embed')
  _returns(back, tmp_path / 'library')  # and what is in the layout, in the other one
  for x, y in zip(jax.tree.leaves(back.params), jax.tree.leaves(model.params)):
    np.testing.assert_array_equal(x, y.astype(np.float16))


@pytest.mark.thorough
def test_what_was_published_for_nv_embed_comes_back(shared_fixtures, tmp_path):
  released = shared_fixtures / 'nv_embed_tiny'
  exporters.export(bundle.open(released), tmp_path / 'out', 'nv-embed')
  files = _files(tmp_path / 'out')
  assert {name: data for name, data in files.items()
          if name not in ('README.md', 'parity.json')} == {
      name: data for name, data in _files(released).items()
      if name not in ('golden.safetensors', 'cases.json')}


@pytest.fixture(scope='module')
def base(source, tmp_path_factory):
  """A folder that adapters name."""
  folder = tmp_path_factory.mktemp('base') / 'model'
  tokenizer = folders.words('<s> $A </s>', cls_token='<s>', sep_token='</s>')
  return folders.backbone(folder, 'mistral', tokenizer, 0)


@pytest.mark.thorough
@pytest.mark.parametrize('name', [
    'dense layers', 'first token', 'latent attention', 'a token behind every text'])
def test_adapters_come_back_byte_for_byte(name, base, tmp_path):
  _, fields, given = MODELS[name]
  beneath = bundle.open(base)
  cfg = dataclasses.replace(beneath.cfg, **fields, lora=config.LoraConfig(
      rank=2, alpha=5.0, targets=r'attn/[qv]$|mlp/down$'))
  params = _drawn(dataclasses.replace(cfg, lora=None)) | {
      'backbone': lora.add(beneath.params, cfg.lora, jax.random.key(0))['backbone']}
  model = dataclasses.replace(
      beneath, params=params, cfg=cfg, card=_CARD, original=None, **given)
  back = _returns(model, tmp_path, 'peft')
  assert back.base == str(base) and back.cfg.lora.rank == 2
  _returns(back, tmp_path / 'merged')


@pytest.mark.thorough
@pytest.mark.parametrize('settings', [
    {}, {'use_rslora': True}, {'modules_to_save': ['input_layernorm']},
    {'use_dora': True}, {'bias': 'all'}])
def test_adapters_of_peft_come_back_byte_for_byte(settings, base, tmp_path):
  """As adapters where one low-rank update says it all, else merged."""
  library = pytest.importorskip('peft')
  import transformers

  theirs = library.get_peft_model(
      transformers.AutoModel.from_pretrained(base), library.LoraConfig(
          r=2, target_modules=['q_proj', 'v_proj'], init_lora_weights=False,
          **settings))
  theirs.save_pretrained(tmp_path / 'adapter')
  found = bundle.open(tmp_path / 'adapter')
  if found.cfg.lora is not None:
    _returns(found, tmp_path, 'peft')
  _returns(found, tmp_path / 'merged')


@pytest.mark.thorough
@pytest.mark.parametrize('place', [
    'sentence-transformers', 'sentence-transformers-new'])
def test_static_vectors_come_back_byte_for_byte(place, source, tmp_path):
  words = bundle.open(folders.backbone(tmp_path / 'model', 'bert', folders.words(
      '<s> $A </s>', cls_token='<s>', sep_token='</s>'), 0))
  exporters.export(words, tmp_path / 'static', 'static', dims=8)
  static = bundle.open(tmp_path / 'static')
  back = _returns(static, tmp_path, place)
  jax.tree.map(np.testing.assert_array_equal, back.params, static.params)


@pytest.mark.thorough
@pytest.mark.parametrize('text', ['', ' means in one word: "'])
def test_a_prepended_token_comes_back_byte_for_byte(text, source, tmp_path):
  model = _model(source, 'mistral', pooled('last') | {'attention': 'causal'})
  params, cfg = training_free.prepend(
      model.params, model.cfg, jax.random.key(2), 1, 3)
  cfg = dataclasses.replace(
      cfg, eos_text=text, prepend=dataclasses.replace(cfg.prepend, text='<PST>'))
  _returns(dataclasses.replace(model, params=params, cfg=cfg), tmp_path)
