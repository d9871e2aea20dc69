"""No code of a stranger's folder runs, however the folder names it, on any road."""

import dataclasses
import json
import pickle
import shutil
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxembed import bundle, config, sharding
from jaxembed.convert import exporters, peft
from jaxembed.embedder import Embedder
from jaxembed.evaluation import sts
from jaxembed.train import loop, start

TEXTS = ['a b c', 'd e', 'what', 'a']


class _Pickle:

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return open, (str(self.mark), 'w')


@pytest.fixture(scope='module')
def hostile(minilm, tmp_path_factory):
  """MiniLM's folder with code in all the places where libraries look for some."""
  root = tmp_path_factory.mktemp('hostile')
  folder, mark = root / 'model', root / 'CODE_RAN'
  shutil.copytree(minilm, folder)
  code = (f'open({str(mark)!r}, "w").close()\n'
          'from transformers import BertConfig as C, BertModel as M, '
          'BertTokenizerFast as T\n')
  for name in ('evil.py', 'sitecustomize.py', 'conftest.py', 'modeling_bert.py',
               'sentence_transformers.py', 'latent_attention_pooling.py', '__init__.py',
               'evilpackage/__init__.py', '1_Pooling/evil.py', 'tokenizers.py'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(code)
  for name in ('pytorch_model.bin', 'training_args.bin', 'optimizer.pt',
               '1_Pooling/pytorch_model.bin', 'adapter_model.bin'):
    (folder / name).write_bytes(pickle.dumps(_Pickle(mark)))

  def edit(name, **fields):
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data | fields))

  edit('config.json', auto_map={'AutoConfig': 'evil.C',
                                'AutoModel': f'{folder}--evil.M'},
       attn_implementation='evil/kernel', custom_pipelines={'x': {'impl': 'evil.M'}})
  edit('tokenizer_config.json', auto_map={'AutoTokenizer': [None, 'evil.T']})
  return folder, mark


@pytest.fixture
def road(hostile, monkeypatch):
  """The folder, from within; afterwards nothing of it has run."""
  folder, mark = hostile
  monkeypatch.chdir(folder)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield folder
  assert not mark.exists()


def test_load_encode_and_evaluate(road):
  model = Embedder.load(road)
  assert np.isfinite(model.encode(TEXTS)).all()
  sts.evaluate(model, TEXTS[:2], TEXTS[2:], [0.0, 1.0])


@pytest.mark.thorough
def test_convert(road, tmp_path):
  model = bundle.open(road)
  short = dataclasses.replace(model.cfg, max_length=64)  # a quarter of the work
  exporters.export(dataclasses.replace(model, cfg=short), tmp_path / 'out')
  assert not list((tmp_path / 'out').rglob('*.py'))
  assert 'evil.' not in ''.join(
      p.read_text() for p in (tmp_path / 'out').rglob('*.json')
      if p.name != 'parity.json')  # which says why the folder was not asked


@pytest.mark.thorough
def test_train(road, tmp_path):
  (tmp_path / 'rows.jsonl').write_text(''.join(
      json.dumps({'query': f'q {i}', 'positive': f'p {i}'}) + '\n' for i in range(16)))
  loop.train(config.Config(
      model=config.ModelSpec(source=str(road)), mesh=config.MeshConfig(data=1, fsdp=8),
      stages=[config.StageConfig(steps=1, data=config.DataConfig(
          sources=[config.SourceConfig(name='s', path=str(tmp_path / 'rows.jsonl'))],
          batch_size=8, query_lengths=(16,), passage_lengths=(16,)))]),
             tmp_path / 'run', log=lambda _: None)
  assert not list((tmp_path / 'run').rglob('*.py'))
  assert not list((tmp_path / 'run' / 'model').rglob('*.bin'))


def test_classes_and_packages_that_a_folder_names(road, tmp_path):
  for kind in ('evil.M', 'evilpackage.Pooling', 'os.system'):
    work = tmp_path / kind
    shutil.copytree(road, work)
    entries = json.loads((work / 'modules.json').read_text())
    entries[1]['type'] = kind
    (work / 'modules.json').write_text(json.dumps(entries))
    with pytest.raises(ValueError, match='modules.json'):
      Embedder.load(work)
  adapter = tmp_path / 'adapter'
  adapter.mkdir()
  save_file({'x': np.zeros(1, np.float32)}, adapter / peft.WEIGHTS)
  for base in ('package:evilpackage.x/', 'package:evilpackage/', str(road)):
    (adapter / peft.CONFIG).write_text(json.dumps({
        'peft_type': 'LORA', 'r': 1, 'lora_alpha': 1, 'base_model_name_or_path': base,
        'auto_mapping': {'base_model_class': 'M', 'parent_library': 'evilpackage'}}))
    with pytest.raises((ValueError, FileNotFoundError)):
      start.start(config.ModelSpec(source=str(adapter)), 0, sharding.make_mesh())
