"""One door for every kind of model, with the weights and without."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from jaxembed import bundle, checkpoint, config, sharding
from jaxembed.convert import from_hf, peft, tables
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.models import lora
from jaxembed.train import start
from tests.helpers import tiny_run


@pytest.fixture(scope='module')
def sources(tmp_path_factory, minilm) -> dict[str, pathlib.Path]:
  """A folder, a workdir and an adapter of one small model."""
  root = tmp_path_factory.mktemp('sources')
  (root / 'folder').mkdir()
  tiny_run.write_model(root / 'folder', minilm)
  (root / 'folder/modules.json').write_text(json.dumps([
      {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.{kind}'}
      for i, (path, kind) in enumerate((('', 'Transformer'), ('pool', 'Pooling')))]))
  (root / 'folder/pool').mkdir()
  (root / 'folder/pool/config.json').write_text('{"word_embedding_dimension": 32}')
  (root / 'folder' / bundle.SETTINGS).write_text(json.dumps(
      {'prompts': {'query': 'ask: '}, 'similarity_fn_name': 'dot', 'truncate_dim': 8}))
  model = bundle.open(root / 'folder')
  bundle.save_model(root / 'workdir', model)
  checkpoint.save_params(root / 'workdir' / 'checkpoints', 3, model.params)
  _write_adapter(root / 'adapter', model, root / 'folder')
  return {name: root / name for name in ('folder', 'workdir', 'adapter')}


def _write_adapter(target, model: bundle.Bundle, base: pathlib.Path):
  cfg = config.LoraConfig(rank=2, targets=r'attn/[qv]$')
  params = lora.add(model.params, cfg, jax.random.key(1))
  peft.write(target, params, dataclasses.replace(model.cfg, lora=cfg), str(base))
  settings = json.loads((base / 'tokenizer_config.json').read_text())
  (target / 'tokenizer_config.json').write_text(json.dumps(  # BERT's own ends otherwise
      settings | {'tokenizer_class': 'TokenizersBackend'}))
  fast = tokenizers.Tokenizer.from_file(str(base / 'tokenizer.json'))
  fast.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP] [SEP]', special_tokens=[('[CLS]', 101), ('[SEP]', 102)])
  fast.save(str(target / 'tokenizer.json'))
  (target / bundle.SETTINGS).write_text(json.dumps({'prompts': {'query': 'own: '}}))


@pytest.mark.parametrize('kind', ['folder', 'workdir', 'adapter'])
def test_shapes_alone_are_those_of_the_weights(sources, kind):
  whole = bundle.open(sources[kind])
  for mesh in (None, sharding.make_mesh((2, 4, 1))):
    shape = bundle.open(sources[kind], weights=False, mesh=mesh)
    assert dataclasses.replace(shape, params={}) == dataclasses.replace(
        whole, params={}, step=shape.step)
    found, wanted = tables.flatten(shape.params), tables.flatten(whole.params)
    assert found.keys() == wanted.keys()
    for path, x in found.items():
      assert isinstance(x, jax.ShapeDtypeStruct)
      assert (x.shape, x.dtype) == (wanted[path].shape, wanted[path].dtype)
  spread = tables.flatten(bundle.open(sources[kind], mesh=mesh).params)
  for path, x in found.items():
    assert x.sharding == spread[path].sharding


def test_shapes_need_no_file_of_weights(sources, tmp_path):
  for kind, gone in (('folder', 'model.safetensors'), ('workdir', 'checkpoints')):
    bare = tmp_path / kind
    shutil.copytree(sources[kind], bare, ignore=shutil.ignore_patterns(gone))
    assert bundle.open(bare, weights=False).cfg == bundle.open(sources[kind]).cfg
    with pytest.raises((FileNotFoundError, BadCheckpoint)):
      bundle.open(bare)


def test_what_a_model_is_travels_with_it(sources):
  folder, run, adapter = (bundle.open(sources[k])
                          for k in ('folder', 'workdir', 'adapter'))
  for model in (folder, run):
    assert model.settings == {
        'prompts': {'query': 'ask: '}, 'default_prompt_name': None,
        'similarity_fn_name': 'dot', 'truncate_dim': 8}
  assert (folder.step, run.step) == (None, 3)
  assert adapter.prompts == {'query': 'own: '}
  assert folder.base == adapter.base == str(sources['folder'])
  ids = {k: m.load_tokenizer().encode(['one'], max_length=16).ids.tolist()
         for k, m in (('folder', folder), ('adapter', adapter))}
  assert ids['adapter'] == [*ids['folder'], 102]


def test_precision_is_a_folders_float32_and_a_workdirs_own(sources, tmp_path):
  half = bundle.open(sources['folder'], dtype='bfloat16')
  bundle.save_model(tmp_path, half)
  checkpoint.save_params(tmp_path / 'checkpoints', 1, half.params)
  for source, dtype, wanted in ((sources['folder'], None, 'float32'),
                                (tmp_path, None, 'bfloat16'),
                                (tmp_path, 'float32', 'float32')):
    found = bundle.open(source, dtype=dtype)
    assert found.cfg.dtype == wanted
    assert {str(x.dtype) for x in jax.tree.leaves(found.params)} == {wanted}


def test_from_hf_and_the_door_read_the_same(sources):
  loaded, opened = from_hf.load(sources['adapter']), bundle.open(sources['adapter'])
  assert loaded.cfg == opened.cfg
  jax.tree.map(np.testing.assert_array_equal, loaded.params, opened.params)


def test_settings_of_another_type_are_named(sources, tmp_path):
  shutil.copytree(sources['folder'], tmp_path, dirs_exist_ok=True)
  for key, value in (('prompts', ['a']), ('default_prompt_name', 3),
                     ('similarity_fn_name', 'l3'), ('default_prompt_name', 'absent'),
                     ('truncate_dim', True), ('truncate_dim', 0),
                     ('truncate_dim', -1), ('prompts', {'query': 3})):
    (tmp_path / bundle.SETTINGS).write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match='prompt|similarity|truncate_dim'):
      bundle.open(tmp_path, weights=False)


def test_a_step_is_of_workdirs(sources):
  assert bundle.open(sources['workdir'], step=3).step == 3
  with pytest.raises(FileNotFoundError, match='no checkpoint 4'):
    bundle.open(sources['workdir'], step=4)
  with pytest.raises(ValueError, match='step=3'):
    bundle.open(sources['folder'], step=3)


@pytest.mark.parametrize('kind', ['folder', 'workdir', 'adapter'])
def test_a_plan_reads_every_kind_of_source(sources, kind, tmp_path):
  """Shape and tokenizer of what a run would start from, before it does."""
  cfg = config.ModelSpec(source=str(sources[kind]), max_length=16)
  found = start.resolve(cfg)
  assert found.load_tokenizer().encode(['one'], max_length=16).ids[0] == 101
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  begun = start.start(cfg, 0, mesh)
  assert begun.cfg == found.cfg and begun.settings == found.settings
  assert jax.tree.map(lambda x: (x.shape, x.dtype), begun.params) == jax.tree.map(
      lambda x: (x.shape, x.dtype), found.params)
