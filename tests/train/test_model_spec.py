"""What an experiment asks of its source: applied, kept or refused, field by field."""

import dataclasses
import json
import re

from absl import flags
import jax
from ml_collections import config_flags
import numpy as np
import pytest

from jaxembed import bundle, checkpoint, config, sharding
from jaxembed.convert import tables
from jaxembed.models import encoder, presets
from jaxembed.train import changes, loop, model_spec, start
from tests.helpers import tiny_run

HEAD = config.PoolingConfig(kind='latent_attention', latents=4, heads=2, head_dim=8,
                            ff_mult=2)
# A source that has something of its own in every field.
SOURCE = dataclasses.replace(
    presets.get('tiny_bert'), pooling=HEAD, attention='causal', max_length=32,
    dtype='bfloat16', precision='high', remat='dots', prompt_pooling='exclude',
    eos_text='[SEP]',
    lora=config.LoraConfig(rank=2, alpha=4.0, dropout=0.1, targets=r'attn/[qv]$'))
PLAIN = dataclasses.replace(SOURCE, lora=None, pooling=config.PoolingConfig())
# field -> (value asked for, where it must be found then) of SOURCE.
APPLIED = {
    'attention': ('bidirectional', 'attention'), 'max_length': (16, 'max_length'),
    'dtype': ('float32', 'dtype'), 'precision': ('highest', 'precision'),
    'remat': ('none', 'remat'), 'attention_impl': ('dense', 'attention_impl'),
    'pooling_impl': ('reference', 'pooling.impl'),
    'prompt_pooling': ('include', 'prompt_pooling'),
    'eos_text': ('[CLS]', 'eos_text'), 'pooling': ('mean', 'pooling.kind'),
    'latents': (8, 'pooling.latents'), 'heads': (4, 'pooling.heads'),
    'head_dim': (16, 'pooling.head_dim'), 'ff_mult': (1, 'pooling.ff_mult'),
    'lora_dropout': (0.0, 'lora.dropout')}
REFUSED = {'reads': ('tokens', 'reads'), 'lora_rank': (4, 'rank'),
           'lora_alpha': (8.0, 'alpha'), 'lora_targets': (r'mlp/up$', 'targets'),
           'lora': (config.LoraConfig(rank=2, alpha=4.0, rslora=True), 'rslora'),
           'append_token': ('[SEP]', 'append_token')}
ELSEWHERE = {'source', 'fallback', 'preset', 'tokenizer',  # which model it is
             'normalize', 'keep_window',  # below
             'length',  # tests/models/test_length.py
             'prepend'}  # tests/models/test_training_free.py


def test_every_field_has_its_rule():
  names = {f.name for f in dataclasses.fields(config.ModelSpec)}
  assert names == APPLIED.keys() | REFUSED.keys() | ELSEWHERE


def test_nothing_asked_keeps_everything():
  assert start.apply_spec(SOURCE, config.ModelSpec()) == SOURCE
  assert model_spec.changes(SOURCE, config.ModelSpec()) == []


@pytest.mark.parametrize('name', APPLIED)
def test_asked_for_is_applied_and_told(name):
  value, path = APPLIED[name]
  found = start.apply_spec(SOURCE, config.ModelSpec(**{name: value}))
  for part in path.split('.'):
    found = getattr(found, part)
  assert found == value
  told = model_spec.changes(SOURCE, config.ModelSpec(**{name: value}))
  assert len(told) == 1 and str(value).rstrip('0.') in told[0]


def test_lengths_of_vectors_are_given_kept_and_told():
  for source in (True, False):
    model = dataclasses.replace(SOURCE, normalize=source)
    for asked, gets in ((None, True), (True, True), (False, False)):
      spec = config.ModelSpec(normalize=asked)
      assert start.apply_spec(model, spec).normalize == gets
      told = model_spec.changes(model, spec)
      assert len(told) == (gets != source) and all('length' in t for t in told)


@pytest.mark.parametrize('name', [name for name in APPLIED if name != 'pooling'])
def test_what_the_source_has_already_changes_nothing(name):
  value = SOURCE
  for part in APPLIED[name][1].split('.'):
    value = getattr(value, part)
  spec = config.ModelSpec(**{name: value})
  assert start.apply_spec(SOURCE, spec) == SOURCE
  assert not model_spec.changes(SOURCE, spec)


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_is_refused_by_name(name):
  value, word = REFUSED[name]
  with pytest.raises(ValueError, match=word):
    start.apply_spec(SOURCE, config.ModelSpec(**{name: value}))


@pytest.mark.parametrize('name, value', [
    ('latents', 4), ('heads', 2), ('head_dim', 8), ('ff_mult', 1), ('reads', 'tokens'),
    ('lora_alpha', 1.0), ('lora_dropout', 0.1), ('lora_targets', 'q$'),
    ('max_length', 65)])
def test_a_part_of_what_is_not_there_is_refused(name, value):
  with pytest.raises(ValueError, match=re.escape(f'config.model.{name}={value!r}')):
    start.apply_spec(PLAIN, config.ModelSpec(**{name: value}))


def test_real_objects_and_their_aliases_ask_for_the_same():
  adapters = config.LoraConfig(rank=3, alpha=6.0, dropout=0.1, targets='attn/q$')
  whole = config.ModelSpec(pooling=HEAD, lora=adapters)
  parts = config.ModelSpec(
      pooling='latent_attention', latents=4, heads=2, head_dim=8, ff_mult=2,
      lora_rank=3, lora_alpha=6.0, lora_dropout=0.1, lora_targets='attn/q$')
  found = start.apply_spec(PLAIN, whole)
  assert found == start.apply_spec(PLAIN, parts)
  assert (found.pooling, found.lora) == (HEAD, adapters)
  data = json.loads(json.dumps(config.to_dict(config.Config(model=whole))))
  assert config.from_dict(config.Config, data).model == whole


def test_the_command_line_sets_leaves(tmp_path):
  file, values = tmp_path / 'experiment.py', flags.FlagValues()
  file.write_text('from jaxembed import config\n'
                  'def get_config():\n'
                  "  return config.Config(model=config.ModelSpec(source='m', "
                  "pooling='latent_attention', latents=8))\n")
  argv = ['x', f'--config={file}', '--config.model.pooling=layer_attention',
          '--config.model.heads=2', '--config.model.reads=tokens',
          '--config.model.lora_rank=4', '--config.model.lora_alpha=8',
          '--config.model.dtype=bfloat16']
  flag = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  found = start.apply_spec(PLAIN, config.validate(flag.value).model)
  assert found.pooling == config.PoolingConfig(
      kind='layer_attention', latents=8, heads=2, reads='tokens')
  assert found.lora == config.LoraConfig(rank=4, alpha=8.0)
  assert found.dtype == 'bfloat16'


def test_a_window_goes_where_attention_turns_and_is_kept_when_asked():
  windowed = dataclasses.replace(
      presets.get('tiny_mistral'), attention='causal', backbone=presets.tiny(
          'mistral', window=6))
  spec = config.ModelSpec(attention='bidirectional')
  assert start.apply_spec(windowed, spec).backbone.window == 0
  assert any('window' in line for line in model_spec.changes(windowed, spec))
  spec.keep_window = True
  assert start.apply_spec(windowed, spec).backbone == windowed.backbone
  assert any('keep_window changes nothing' in line for line in model_spec.changes(
      windowed, config.ModelSpec(keep_window=True)))


def test_a_kind_without_parameters_tells_what_it_has_no_use_for():
  told = model_spec.changes(PLAIN, config.ModelSpec(pooling='cls', latents=8))
  assert any('no latents' in line for line in told)


def test_adapters_on_the_same_matrices_may_be_named_in_another_way():
  spec = config.ModelSpec(lora_targets=r'layers/(attn/q|attn/v)$')
  assert start.apply_spec(SOURCE, spec) == SOURCE


@pytest.fixture(scope='module')
def headed(tmp_path_factory, minilm):
  """A bfloat16 workdir with a latent head and adapters."""
  folder = tmp_path_factory.mktemp('headed')
  (folder / 'model').mkdir()
  plain = bundle.open(tiny_run.write_model(folder / 'model', minilm))
  cfg = dataclasses.replace(SOURCE, backbone=plain.cfg.backbone, eos_text='',
                            attention='bidirectional')
  params = encoder.init_params(cfg, jax.random.key(2))
  run = folder / 'run'
  bundle.save_model(run, dataclasses.replace(plain, cfg=cfg, params=params))
  checkpoint.save_params(run / 'checkpoints', 1, params)
  return run


@pytest.mark.thorough
def test_a_trained_head_goes_on_and_another_is_drawn_anew(headed):
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  own = bundle.open(headed)
  same = start.start(config.ModelSpec(source=str(headed), latents=4), 0, mesh)
  assert same.cfg == own.cfg  # bfloat16 and dots stay, nobody asked for others
  jax.tree.map(np.testing.assert_array_equal, same.params, own.params)
  other = start.start(config.ModelSpec(source=str(headed), latents=8), 0, mesh)
  assert other.params['pooling']['latents'].shape[0] == 8
  jax.tree.map(np.testing.assert_array_equal, other.params['backbone'],
               own.params['backbone'])
  plain = start.start(config.ModelSpec(source=str(headed), pooling='mean'), 0, mesh)
  shapes = tables.flatten(encoder.param_shapes(plain.cfg))
  assert tables.flatten(plain.params).keys() == shapes.keys()


def test_a_preset_begins_with_a_tokenizer_or_not_at_all(tmp_path, minilm):
  cfg = tiny_run.in_folder(tmp_path, minilm, steps=1)
  cfg.model = config.ModelSpec(preset='tiny_bert')
  with pytest.raises(ValueError, match=r'config\.model\.tokenizer'):
    loop.train(cfg, tmp_path / 'run', log=lambda _: None)
  assert not (tmp_path / 'run').exists()
  spec = config.ModelSpec(preset='tiny_bert', tokenizer=str(minilm))
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  bundle.save_model(tmp_path / 'run', start.start(spec, 0, mesh))
  found = bundle.open(tmp_path / 'run', weights=False)
  assert found.cfg.backbone.vocab_size == 30522
  assert any('30522' in line for line in start.changes(spec))
  assert not (tmp_path / 'run/model/config.json').exists()  # MiniLM's, of other sizes


def test_a_refusal_leaves_no_folder(tmp_path, minilm):
  cfg = tiny_run.in_folder(tmp_path, minilm, steps=1)
  cfg.model.latents = 8
  with pytest.raises(ValueError, match=r'config\.model\.latents=8'):
    loop.train(cfg, tmp_path / 'run', log=lambda _: None)
  assert not (tmp_path / 'run').exists()


def test_a_config_from_before_fields_could_ask_for_nothing_is_read_as_it_was(tmp_path):
  old = {'source': 'm', 'fallback': '', 'preset': '', 'attention': '', 'pooling': '',
         'latents': 512, 'heads': 8, 'head_dim': 0, 'ff_mult': 4,
         'reads': 'layers_mean', 'max_length': 0, 'prompt_pooling': '', 'eos_text': '',
         'append_token': '', 'dtype': 'float32', 'remat': 'none', 'lora_rank': 0,
         'lora_alpha': 32.0, 'lora_dropout': 0.0, 'lora_targets': ''}
  assert config.from_dict(config.ModelSpec, old) == config.ModelSpec(source='m')
  cfg = config.Config(model=config.ModelSpec(source='m'))
  changes.write(tmp_path, cfg)
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'model': old}))
  assert changes.check(tmp_path, cfg, done=1) == []
  cfg.model.dtype = 'float32'  # what the run had all the same
  assert changes.check(tmp_path, cfg, done=1) == []
  cfg.model.dtype = 'bfloat16'
  with pytest.raises(ValueError, match=r"model\.dtype was '', is 'bfloat16'"):
    changes.check(tmp_path, cfg, done=1)
