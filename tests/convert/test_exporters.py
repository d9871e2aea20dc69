"""Every format: whole and checked, or not there; adapters name weights that fit."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxembed import bundle, checkpoint, config, sharding
from jaxembed.convert import exporters, parity, peft, tables
from jaxembed.embedder import Embedder
from jaxembed.models import encoder, presets
from jaxembed.train import start
from tests.helpers import tiny_run
from tests.helpers.tiers import thorough

TEXTS = ['what is number 3', 'a', 'three is nine']


@pytest.fixture(scope='module')
def base(tmp_path_factory, minilm):
  folder = tmp_path_factory.mktemp('base') / 'model'
  folder.mkdir()
  return tiny_run.write_model(folder, minilm)


def _begin(source, folder, **spec) -> pathlib.Path:
  """A workdir as a run from `source` leaves it; its adapters moved."""
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  model = start.start(config.ModelSpec(source=str(source), **spec), 0, mesh)
  params = jax.tree.map_with_path(
      lambda path, x: x + 0.05 if 'lora_b' in jax.tree_util.keystr(path) else x,
      model.params)
  model = dataclasses.replace(model, params=params, prompts={'query': 'ask: '})
  bundle.save_model(folder, model)
  checkpoint.save_params(folder / 'checkpoints', 1, params)
  return folder


@pytest.fixture(scope='module')
def run(base, tmp_path_factory):
  return _begin(base, tmp_path_factory.mktemp('run') / 'run', lora_rank=2,
                max_length=32, pooling='cls', prompt_pooling='exclude')


@pytest.fixture(scope='module')
def adapter(run, tmp_path_factory):
  target = tmp_path_factory.mktemp('adapter') / 'adapter'
  exporters.export(bundle.open(run), target, 'peft')
  return target


@pytest.mark.thorough
def test_an_adapter_is_the_model_wherever_it_is_opened(run, adapter, base):
  st = pytest.importorskip('sentence_transformers')
  library = pytest.importorskip('peft')
  import transformers

  assert json.loads((adapter / peft.CONFIG).read_text())[
      'base_model_name_or_path'] == str(base)
  ours, again = Embedder.load(run), Embedder.load(adapter)
  assert again.bundle.settings == ours.bundle.settings
  theirs = st.SentenceTransformer(str(adapter), device='cpu')
  for model in (again, theirs):
    np.testing.assert_allclose(ours.encode_query(TEXTS), model.encode_query(TEXTS),
                               atol=1e-5)
  states = library.PeftModel.from_pretrained(
      transformers.AutoModel.from_pretrained(base), adapter)
  assert states.peft_config['default'].r == 2
  plain = Embedder.load(base).encode(TEXTS)
  assert np.abs(plain - ours.encode(TEXTS)).max() > 1e-3


def test_the_base_stays_the_same_from_run_to_adapter_to_run(
    run, adapter, base, tmp_path):
  for i, source in enumerate((run, adapter)):
    again = _begin(source, tmp_path / f'run{i}')
    found = bundle.open(again)
    assert found.base == str(base)
    assert found.cfg == dataclasses.replace(bundle.open(run).cfg, lora=found.cfg.lora)
    assert (found.cfg.lora.rank, found.cfg.lora.alpha) == (2, 32.0)
    report = exporters.export(found, tmp_path / f'out{i}', 'peft')
    assert report == json.loads((tmp_path / f'out{i}/parity.json').read_text())
    assert 'library_name: peft' in (tmp_path / f'out{i}/README.md').read_text()
  (run / 'model/origin.json').rename(tmp_path / 'origin.json')
  try:  # a run from before origins were kept says it in its configuration alone
    (run / 'config.json').write_text(json.dumps({'model': {'source': str(base)}}))
    assert bundle.open(run).base == str(base)
  finally:
    (tmp_path / 'origin.json').rename(run / 'model/origin.json')


@pytest.mark.thorough
def test_adapters_on_weights_of_their_own_need_a_base_that_is_named(
    base, tmp_path):
  trained = _begin(base, tmp_path / 'full')
  params = jax.tree.map(lambda x: x * 1.01, bundle.open(trained).params)
  checkpoint.save_params(trained / 'checkpoints', 2, params)
  run = _begin(trained, tmp_path / 'run', lora_rank=2)
  with pytest.raises(ValueError, match='name that folder with --base'):
    exporters.export(bundle.open(run), tmp_path / 'out', 'peft')
  with pytest.raises(parity.Mismatch, match='trained on other weights'):
    exporters.export(bundle.open(run), tmp_path / 'out', 'peft', str(base))
  assert {p.name for p in tmp_path.iterdir()} == {'full', 'run'}
  exporters.export(bundle.open(trained), tmp_path / 'plain')
  exporters.export(bundle.open(run), tmp_path / 'out', 'peft', str(tmp_path / 'plain'))
  np.testing.assert_allclose(Embedder.load(tmp_path / 'out').encode(TEXTS),
                             Embedder.load(run).encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize('format', [
    thorough(name) if name == 'onnx' else name for name in exporters.FORMATS])
def test_a_failed_check_leaves_nothing_and_a_target_stays(
    run, tmp_path, format, monkeypatch):
  def fails(folder, model, *expected):
    raise parity.Mismatch('no')

  mine = exporters.FORMATS[format]
  write = mine.write if format != 'nv-embed' else lambda f, m: f.mkdir()
  monkeypatch.setitem(exporters.FORMATS, format,
                      dataclasses.replace(mine, write=write, check=fails))
  model = bundle.open(run)
  with pytest.raises(parity.Mismatch):
    exporters.export(model, tmp_path / 'out', format)
  assert not list(tmp_path.iterdir())
  (tmp_path / 'out').mkdir()  # empty: a rename would replace it
  before = (tmp_path / 'out').stat().st_ino
  with pytest.raises(FileExistsError):
    exporters.export(model, tmp_path / 'out', format)
  assert (tmp_path / 'out').stat().st_ino == before


@pytest.mark.thorough
def test_what_a_killed_export_left_is_removed_by_the_next(run, tmp_path):
  code = f'''
import os, signal
from jaxembed import bundle
from jaxembed.convert import exporters
def kill(folder, model, *expected):
  os.kill(os.getpid(), signal.SIGKILL)
write = exporters.FORMATS['peft'].write
exporters.FORMATS['peft'] = exporters.Format(write, kill, False)
exporters.export(bundle.open({str(run)!r}), {str(tmp_path / "out")!r}, 'peft')
'''
  subprocess.run([sys.executable, '-c', code], check=False, env=os.environ | {
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2])})
  assert [p.name for p in tmp_path.glob('.out.*.partial')]
  assert not (tmp_path / 'out').exists()
  exporters.export(bundle.open(run), tmp_path / 'out', 'peft')
  assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_the_published_layout_is_read_back_and_keeps_what_was_trained(
    tmp_path, minilm):
  backbone = presets.tiny('mistral', vocab_size=30522)
  cfg = config.ModelConfig(
      backbone=backbone, max_length=48, prompt_pooling='nv_embed', eos_text='</s>',
      pooling=config.PoolingConfig(kind='latent_attention', latents=4, heads=2,
                                   head_dim=8))
  model = bundle.Bundle(
      params=encoder.init_params(cfg, jax.random.key(0)), cfg=cfg,
      tokenizer_folder=minilm, config_folder=minilm, prompts={'query': 'Query: '})
  report = exporters.export(model, tmp_path / 'out', 'nv-embed')
  found = bundle.open(tmp_path / 'out')
  assert found.prompts == {'query': 'Query: '} and found.cfg.max_length == 48
  assert report['tensors'] > 10
  assert report == json.loads((tmp_path / 'out/parity.json').read_text())
  card = (tmp_path / 'out/README.md').read_text()
  assert 'tensors read back' in card and 'from sentence_transformers' not in card
  for field, value in (('prompt_pooling', 'include'), ('attention', 'causal')):
    other = dataclasses.replace(model, cfg=dataclasses.replace(cfg, **{field: value}))
    with pytest.raises(ValueError, match=field):
      exporters.export(other, tmp_path / 'other', 'nv-embed')
  assert not (tmp_path / 'other').exists()


def test_a_row_of_the_table_makes_a_format(run, tmp_path, monkeypatch):
  """Weights and config.json alone, as transformers reads them."""
  def write(folder, model):
    folder.mkdir()
    save_file(tables.to_hf(model.params, model.cfg), folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(
        tables.config_to_hf(model.cfg.backbone, model.cfg.attention)))

  def check(folder, model):
    found = tables.flatten(bundle.open(folder).params)
    wanted = tables.flatten(model.params)
    return {'told': 'the same', 'equal': all(
        np.array_equal(found[path], wanted[path]) for path in found)}

  monkeypatch.setitem(exporters.FORMATS, 'plain', exporters.Format(write, check))
  report = exporters.export(bundle.open(run), tmp_path / 'out', 'plain')
  assert report['equal']
  assert {p.name for p in (tmp_path / 'out').iterdir()} == {
      'model.safetensors', 'config.json', 'parity.json'}
  assert bundle.open(tmp_path / 'out').cfg.backbone == bundle.open(run).cfg.backbone


def test_save_writes_what_both_libraries_read(run, tmp_path):
  st = pytest.importorskip('sentence_transformers')
  model = Embedder.load(run)
  model.save(tmp_path / 'saved')
  theirs = st.SentenceTransformer(str(tmp_path / 'saved'), device='cpu')
  for other in (Embedder.load(tmp_path / 'saved'), theirs):
    np.testing.assert_allclose(model.encode_query(TEXTS), other.encode_query(TEXTS),
                               atol=1e-5)
