"""Exported folders in torch: same vectors, same meaning, whole or not there."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxembed import bundle, config, data
from jaxembed.convert import exporters, from_hf, model_card, parity
from jaxembed.embedder import Embedder
from jaxembed.files.folder import BadCheckpoint
from jaxembed.models import encoder, presets, training_free
from tests.helpers.tiers import after

st = pytest.importorskip('sentence_transformers')

_TEXTS = ['', 'a', 'The quick brown fox.', 'Ångström 敏捷 🚀', 'long ' * 200]
_LATENT = config.PoolingConfig(
    kind='latent_attention', latents=6, heads=2, head_dim=8, ff_mult=2)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A byte-level BPE tokenizer with <s> and </s>, as model folders carry it."""
  folder = tmp_path_factory.mktemp('source')
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  fast.decoder = decoders.ByteLevel()
  fast.train_from_iterator(_TEXTS + list(parity.PROBES), trainers.BpeTrainer(
      vocab_size=400, special_tokens=['<pad>', '<s>', '</s>'], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  fast.post_processor = processors.TemplateProcessing(
      single='<s> $A </s>', special_tokens=[('<s>', 1), ('</s>', 2)])
  fast.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'PreTrainedTokenizerFast', 'pad_token': '<pad>',
      'bos_token': '<s>', 'eos_token': '</s>', 'model_max_length': 10**30}))
  return folder


def _model(family: str, pooling: config.PoolingConfig, **changes):
  cfg = config.ModelConfig(
      backbone=presets.tiny(family, vocab_size=512), pooling=pooling,
      max_length=48, **changes)
  params = encoder.init_params(cfg, jax.random.key(0))
  # A new head is mean pooling; a trained one is not.
  keys = iter(jax.random.split(jax.random.key(1), 100))
  if 'pooling' in params:
    params['pooling'] = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape),
        params['pooling'])
  return params, cfg


def _export(target, source, params, cfg, **options):
  options = {'prompts': {'query': 'find: '}} | options
  return exporters.export(bundle.Bundle(
      params=params, cfg=cfg, tokenizer_folder=source, config_folder=source, **options),
      target)


@pytest.mark.parametrize('pooling, family, attention', after(3, [
    ('mean', 'bert', 'bidirectional'), ('latent', 'mistral', 'bidirectional'),
    ('last', 'mistral', 'causal'), ('mean', 'mistral', 'bidirectional'),
    ('mean', 'mistral', 'causal'), ('cls', 'bert', 'bidirectional'),
    ('cls', 'mistral', 'bidirectional'), ('cls', 'mistral', 'causal'),
    ('last', 'bert', 'bidirectional'), ('last', 'mistral', 'bidirectional'),
    ('latent', 'bert', 'bidirectional'), ('latent', 'mistral', 'causal'),
    ('mean', 'gemma', 'bidirectional'), ('last', 'gemma', 'causal'),
    ('mean', 'granite', 'bidirectional'), ('last', 'granite', 'causal'),
    ('mean', 'olmo', 'bidirectional'), ('last', 'olmo2', 'causal'),
    ('cls', 'olmo3', 'bidirectional'), ('last', 'olmo3', 'causal'),
    ('mean', 'smollm3', 'bidirectional'), ('last', 'smollm3', 'causal'),
    ('latent', 'phi', 'bidirectional'), ('last', 'phi', 'causal'),
    ('mean', 'ministral3', 'bidirectional'), ('last', 'ministral3', 'causal'),
    ('mean', 'mixtral', 'bidirectional'), ('last', 'qwen3_moe', 'causal')]))
def test_torch_computes_the_same(tmp_path, source, family, attention, pooling):
  pooling = _LATENT if pooling == 'latent' else config.PoolingConfig(kind=pooling)
  params, cfg = _model(family, pooling, attention=attention)
  rule = 'exclude' if pooling is _LATENT else 'include'
  cfg = dataclasses.replace(cfg, prompt_pooling=rule)
  report = _export(tmp_path / 'out', source, params, cfg)
  assert report['max_difference'] <= 1e-5  # measured below 1e-6
  assert {c['padding'] for c in report['cases']} == {'left', 'right'}
  assert len(report['cases']) == 6  # two sides; none, stored and probe prompt
  assert report == json.loads((tmp_path / 'out/parity.json').read_text())

  # What went out comes back: the same parameters, bit for bit.
  back = Embedder.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, back.params, params)
  assert dataclasses.replace(back.cfg, backbone=cfg.backbone) == cfg
  assert back.tokenizer.prompt_pooling == rule
  assert back.prompts == {'query': 'find: '}


@pytest.mark.thorough
@pytest.mark.parametrize('reads', after(1, ['layers_last', 'layers_mean', 'tokens']))
def test_a_head_over_layers_leaves_with_its_torch_module(tmp_path, source, reads):
  pooling = dataclasses.replace(_LATENT, kind='layer_attention', reads=reads)
  family = 'mistral' if reads == 'layers_last' else 'bert'
  params, cfg = _model(family, pooling, prompt_pooling='exclude')
  report = _export(tmp_path / 'out', source, params, cfg)
  assert report['max_difference'] <= 1e-5
  back = Embedder.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, back.params, params)
  assert back.cfg.pooling == pooling


@pytest.mark.thorough
@pytest.mark.parametrize('family, pooling, rule', after(2, [
    ('mistral', config.PoolingConfig(kind='last'), 'include'),
    ('bert', config.PoolingConfig(), 'exclude'),
    # Without those whose position or window the fixture's tokenizer does not fit.
    *((family, config.PoolingConfig(), 'include') for family in (
        'llama', 'qwen2', 'qwen3', 'gemma2', 'gemma3_text', 'phi3', 'distilbert',
        'electra', 'modernbert')),
    ('mistral', dataclasses.replace(_LATENT, kind='layer_attention',
                                    reads='layers_last'), 'exclude')]))
def test_a_prepended_token_leaves_with_its_torch_module(tmp_path, source, family,
                                                        pooling, rule):
  params, cfg = _model(family, pooling, prompt_pooling=rule)
  params, cfg = training_free.prepend(params, cfg, jax.random.key(2), 1, 3)
  # A state that is replaced must be seen in the vector.
  params['backbone']['embed']['token'] *= 3
  cfg = dataclasses.replace(cfg, eos_text=' means in one word: "' * (family == 'bert'),
                            prepend=dataclasses.replace(cfg.prepend, text='<PST>'))
  report = _export(tmp_path / 'out', source, params, cfg)
  assert report['max_difference'] <= 1e-5
  back = Embedder.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, back.params, params)
  assert dataclasses.replace(back.cfg, backbone=cfg.backbone) == cfg
  idle = Embedder(dataclasses.replace(back.bundle, cfg=dataclasses.replace(
      cfg, prepend=dataclasses.replace(cfg.prepend, stop=1))))
  assert np.abs(back.encode(_TEXTS) - idle.encode(_TEXTS)).max() > 1e-3


@pytest.mark.thorough
def test_dense_layers_and_no_normalisation(tmp_path, source):
  dense = (config.DenseConfig(features=24, activation='tanh', residual=True),
           config.DenseConfig(features=16, bias=False, normalize_input=True))
  pooling = config.PoolingConfig(kind='mean_sqrt+cls')  # not the order of the keys
  params, cfg = _model('bert', pooling, dense=dense, normalize=False)
  _export(tmp_path / 'out', source, params, cfg)
  theirs = st.SentenceTransformer(str(tmp_path / 'out'), device='cpu')
  ours = Embedder.load(tmp_path / 'out')
  expected = theirs.encode(_TEXTS)
  assert expected.shape == (5, 16)
  with pytest.warns(UserWarning, match='1 of 5 texts are longer than 48'):
    np.testing.assert_allclose(
        ours.encode(_TEXTS, normalize=False), expected, rtol=0, atol=1e-5)


def test_two_way_decoder_says_so(tmp_path, source):
  params, cfg = _model('mistral', config.PoolingConfig())
  _export(tmp_path / 'out', source, params, cfg)
  hf = json.loads((tmp_path / 'out/config.json').read_text())
  assert hf['is_causal'] is False and hf['use_bidirectional_attention'] is True
  assert hf['sliding_window'] is None and hf['architectures'] == ['MistralModel']
  # A late token moves an early state.
  model = st.SentenceTransformer(str(tmp_path / 'out'), device='cpu')
  a, b = model.encode(['one two three', 'one two four'],
                      output_value='token_embeddings')
  assert (a[0] - b[0]).abs().max() > 1e-4


def test_layout_is_the_legacy_one(tmp_path, source):
  params, cfg = _model('bert', config.PoolingConfig(kind='cls'))
  _export(tmp_path / 'out', source, params, cfg)
  out = tmp_path / 'out'
  modules = json.loads((out / 'modules.json').read_text())
  assert [(m['name'], m['path'], m['type'].rpartition('.')[2]) for m in modules] == [
      ('0', '', 'Transformer'), ('1', '1_Pooling', 'Pooling'),
      ('2', '2_Normalize', 'Normalize')]
  pooling = json.loads((out / '1_Pooling/config.json').read_text())
  # text-embeddings-inference demands both keys.
  assert pooling['pooling_mode_cls_token'] is True
  assert pooling['pooling_mode_mean_tokens'] is False
  assert json.loads((out / 'tokenizer_config.json').read_text())[
      'model_max_length'] == 48
  assert list((out / '2_Normalize').iterdir())
  assert 'text-embeddings-inference' in (out / 'README.md').read_text()
  assert not list(out.rglob('*.py')) and not list(out.rglob('*.bin'))


@pytest.fixture(scope='module')
def latent(tmp_path_factory, source):
  params, cfg = _model('mistral', _LATENT)
  out = tmp_path_factory.mktemp('latent') / 'out'
  cfg = dataclasses.replace(cfg, prompt_pooling='exclude')
  _export(out, source, params, cfg)
  return out


def test_latent_attention_is_one_file_in_the_root(latent):
  assert (latent / 'latent_attention_pooling.py').is_file()
  assert (latent / '1_LatentAttentionPooling/model.safetensors').is_file()
  with pytest.raises(ValueError, match='trust_remote_code'):
    st.SentenceTransformer(str(latent), device='cpu')


@pytest.mark.thorough
def test_saved_copy_of_latent_attention_loads_in_a_fresh_process(latent, tmp_path):
  model = st.SentenceTransformer(str(latent), device='cpu', trust_remote_code=True)
  model.save_pretrained(str(tmp_path / 'copy'))
  np.save(tmp_path / 'expected.npy', model.encode(_TEXTS))
  code = f'''
import numpy as np, sentence_transformers, sys
assert 'jaxembed' not in sys.modules
model = sentence_transformers.SentenceTransformer(
    {str(tmp_path / "copy")!r}, device='cpu', trust_remote_code=True)
difference = np.abs(model.encode({_TEXTS!r}) - np.load({
    str(tmp_path / "expected.npy")!r})).max()
assert difference == 0, difference
'''
  subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path,
                 env=os.environ | {'HF_HOME': str(tmp_path / 'hf')})


def test_prompt_tokens_stay_out_of_latent_pooling(latent):
  model = st.SentenceTransformer(str(latent), device='cpu', trust_remote_code=True)
  ours = Embedder.load(latent)
  np.testing.assert_allclose(
      ours.encode_query(_TEXTS[:4]), model.encode_query(_TEXTS[:4]), atol=1e-5)
  pooled = model[1]
  pooled.include_prompt = True
  assert np.abs(model.encode_query(_TEXTS[:4])
                - ours.encode_query(_TEXTS[:4])).max() > 1e-3


@pytest.mark.thorough
def test_minilm_goes_out_as_it_came(minilm, tmp_path):
  loaded = from_hf.load(minilm)
  cfg = dataclasses.replace(loaded.cfg, max_length=64)  # a quarter of the work
  report = _export(tmp_path / 'out', minilm, loaded.params, cfg, prompts={})
  assert report['max_difference'] <= 1e-5
  back = from_hf.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, back.params, loaded.params)
  assert back.cfg == cfg


def test_the_token_behind_every_text_goes_with_the_model(tmp_path, source):
  bare = tmp_path / 'bare'
  shutil.copytree(source, bare)
  fast = tokenizers.Tokenizer.from_file(str(bare / 'tokenizer.json'))
  fast.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 1)])
  fast.save(str(bare / 'tokenizer.json'))
  params, cfg = _model('mistral', config.PoolingConfig(kind='last'), eos_text='</s>')
  _export(tmp_path / 'out', bare, params, cfg)
  model = bundle.Bundle(params=params, cfg=cfg, tokenizer_folder=bare)
  ours = Embedder(model)
  texts = ['a', 'The quick brown fox.']
  theirs = st.SentenceTransformer(str(tmp_path / 'out'), device='cpu')
  np.testing.assert_allclose(theirs.encode(texts), ours.encode(texts), atol=1e-5)
  without = Embedder(model, tokenizer=data.Tokenizer.load(bare)).encode(texts)
  assert np.abs(without - ours.encode(texts)).max() > 1e-3


def test_existing_target_is_refused_and_untouched(tmp_path, source):
  params, cfg = _model('bert', config.PoolingConfig())
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out/mine.txt').write_text('mine')
  with pytest.raises(FileExistsError, match='out exists; choose another'):
    _export(tmp_path / 'out', source, params, cfg)
  assert [p.name for p in (tmp_path / 'out').iterdir()] == ['mine.txt']


def test_a_difference_fails_loudly_and_leaves_nothing(tmp_path, source, monkeypatch):
  params, cfg = _model('bert', config.PoolingConfig())
  ours = exporters.FORMATS['sentence-transformers']

  def broken(folder, model):
    ours.write(folder, dataclasses.replace(
        model, params=jax.tree.map(lambda x: x + 1e-3, model.params)))

  monkeypatch.setitem(exporters.FORMATS, 'sentence-transformers',
                      dataclasses.replace(ours, write=broken))
  with pytest.raises(parity.Mismatch, match=r'torch and JAX differ by .* padding'):
    _export(tmp_path / 'out', source, params, cfg)
  assert not list(tmp_path.iterdir())


def test_not_a_number_is_a_difference(tmp_path, source):
  params, cfg = _model('bert', config.PoolingConfig())
  params['backbone']['embed']['token'] = (
      params['backbone']['embed']['token'].at[2].set(np.nan))
  with pytest.raises(parity.Mismatch, match='nan'):
    _export(tmp_path / 'out', source, params, cfg)
  assert not list(tmp_path.iterdir())


def test_what_the_layout_cannot_hold_is_refused(tmp_path, source):
  params, cfg = _model('bert', config.PoolingConfig())
  prepended = dataclasses.replace(
      cfg, prepend=config.PrependConfig(token_id=1, start=0, stop=1))
  with pytest.raises(ValueError, match='no text that a tokenizer could put'):
    _export(tmp_path / 'out', source, params, prepended)
  with pytest.raises(ValueError, match='nv-embed has no place for a prepended token'):
    exporters.export(bundle.Bundle(params=params, cfg=prepended), tmp_path / 'out',
                     'nv-embed')
  bare = tmp_path / 'bare'
  bare.mkdir()
  shutil.copyfile(source / 'tokenizer.json', bare / 'tokenizer.json')
  with pytest.raises(FileNotFoundError, match=r'tokenizer_config\.json'):
    _export(tmp_path / 'out', bare, params, cfg)
  with pytest.raises(ValueError, match='max_length=2 leaves no token'):
    _export(tmp_path / 'out', source, params, dataclasses.replace(cfg, max_length=2))
  (bare / 'tokenizer.json').write_text('{}')
  with pytest.raises(BadCheckpoint, match=r'bare/tokenizer\.json is no tokenizer'):
    _export(tmp_path / 'out', bare, params, cfg)
  assert not (tmp_path / 'out').exists()


def test_card_warns_where_servers_differ():
  report = {'versions': {'sentence_transformers': '6', 'jax': '1'},
            'max_difference': 1e-7}
  _, cfg = _model('mistral', _LATENT)
  assert 'none has this pooling' in model_card.render('m', cfg, {}, True, report)
  cfg = dataclasses.replace(cfg, pooling=config.PoolingConfig())
  card = model_card.render('m', cfg, {'query': 'q: '}, False, report)
  assert 'Only sentence-transformers leaves prompt tokens out' in card
