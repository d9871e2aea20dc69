"""A dataset in TFDS's array_record form, read without TensorFlow."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from jaxembed import data
from jaxembed.config import SourceConfig
from jaxembed.data.fields import BadFile


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A tiny dataset, written by TFDS itself."""
  import tensorflow_datasets as tfds

  class TinyPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      text = tfds.features.Text()
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
          {'query': text, 'pos': tfds.features.Sequence(text)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(5):
        yield i, {'query': f'frage {i} é', 'pos': [f'a {i}', f'b {i}']}

  folder = tmp_path_factory.mktemp('tfds')
  TinyPairs(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


def test_rows(prepared):
  rows = data.load(SourceConfig(name='t', kind='tfds', path='tiny_pairs',
                                data_dir=str(prepared)), check_rows=5)
  found = sorted((r.query, *(p.text for p in r.positives)) for r in rows)
  assert found == [(f'frage {i} é', f'a {i}', f'b {i}') for i in range(5)]


def test_a_folder_of_rows_becomes_a_set_with_the_same_examples(tmp_path):
  rows = {'train_1.jsonl': {'query': 'q é', 'pos': ['p', 'r'], 'neg': ['n'],
                            'pos_scores': [1.0, 0.5], 'neg_scores': [0.25],
                            'prompt': 'find', 'type': 'symmetric_sts'},
          'a.jsonl': {'query': 'w', 'query_id': 3, 'positive_passages': [
              {'docid': '7', 'title': 'T', 'text': 'u'}], 'negative_passages': []},
          'test.jsonl': ['x', 'y', 'z']}
  from jaxembed.data import jaxembed_pairs  # imports TFDS
  (tmp_path / 'rows').mkdir()
  for name, row in rows.items():
    (tmp_path / 'rows' / name).write_text(json.dumps(row))
  jaxembed_pairs.build(tmp_path / 'rows', tmp_path / 'set')

  def load(**source):
    return sorted(data.load(SourceConfig(name='s', **source), 9), key=lambda r: r.query)

  for split, names in (('train', ('train_1', 'a')), ('test', ('test',))):
    assert load(kind='tfds', path='jaxembed_pairs', data_dir=str(tmp_path / 'set'),
                split=split) == load(
        path=str(tmp_path / f'rows/{names[0]}.jsonl'),
        paths=tuple(str(tmp_path / f'rows/{n}.jsonl') for n in names[1:]))


@pytest.mark.parametrize('split', ['train', 'train[1:4]'])
@pytest.mark.parametrize('change', ['touched', 'gone'])
def test_a_file_that_changes_under_a_run_is_noticed(prepared, tmp_path, split, change):
  shutil.copytree(prepared, tmp_path / 'set')
  rows = data.load(SourceConfig(name='t', kind='tfds', path='tiny_pairs', split=split,
                                data_dir=str(tmp_path / 'set')), check_rows=5)
  file, = (tmp_path / 'set').rglob('*.array_record*')
  if change == 'gone':
    file.unlink()
  else:
    os.utime(file, ns=(1, 1))
  with pytest.raises(BadFile, match='(file changed|no such file)'):
    rows[0]


def test_a_dataset_that_is_not_there(prepared):
  with pytest.raises(FileNotFoundError, match="'nope' is not prepared in"):
    data.load(SourceConfig(name='t', kind='tfds', path='nope', data_dir=str(prepared)))


def test_tensorflow_and_tfds_stay_out(prepared):
  """TFDS is imported by its source alone, TensorFlow never."""
  code = textwrap.dedent(f'''
      import sys
      from jaxembed import config, data
      assert 'tensorflow_datasets' not in sys.modules
      data.load(config.SourceConfig(name='t', kind='tfds', path='tiny_pairs',
                                    data_dir={str(prepared)!r}), 5)
      assert 'tensorflow' not in sys.modules
  ''')
  subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
