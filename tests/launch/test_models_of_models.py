"""The commands that make a model out of models write workdirs that open."""

import numpy as np
import pytest

from jaxembed import bundle
from jaxembed.paths import flatten
from tests.helpers import launcher, tiny_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory, minilm):
  folder = tmp_path_factory.mktemp('models') / 'model'
  folder.mkdir()
  return tiny_run.write_model(folder, minilm)


def _bits(source):
  found = flatten(bundle.open(source).params)
  return {k: np.asarray(x).tobytes() for k, x in found.items()}


def test_a_model_merged_with_itself_is_written_as_it_is(folder, tmp_path):
  ended = launcher.run('merge', f'--source={folder}', f'--source={folder}',
                       f'--target={tmp_path}/run', '--method=slerp',
                       '--weights=0.7,0.3')
  assert ended.code == 0 and '2 models, slerp' in ended.out
  assert _bits(tmp_path / 'run') == _bits(folder)
  again = launcher.run('merge', f'--source={folder}', f'--target={tmp_path}/run')
  assert 'exists; choose another' in again.err
  for flags, told in ((['--weights=a'], 'are not numbers'),
                      (['--method=ties'], '--base'),
                      (['--method=position', f'--base={folder}'], '--probe')):
    ended = launcher.run('merge', f'--source={folder}', f'--target={tmp_path}/x',
                         *flags)
    assert told in ended.err and not (tmp_path / 'x').exists()


@pytest.mark.thorough
def test_a_position_is_learned_on_rows_of_files(folder, tmp_path):
  rows = tiny_run.write_rows(tmp_path / 'rows.jsonl')
  moved = bundle.open(folder)
  bundle.save(tmp_path / 'moved', bundle.dataclasses.replace(
      moved, params={'backbone': {**moved.params['backbone'], 'embed': {
          k: v if isinstance(v, dict) else v * 1.01
          for k, v in moved.params['backbone']['embed'].items()}}}))
  ended = launcher.run(
      'merge', f'--source={folder}', f'--source={tmp_path}/moved', f'--base={folder}',
      f'--target={tmp_path}/run', '--method=position', f'--probe={rows}', '--steps=2',
      '--batch_size=4')
  assert ended.code == 0 and 'loss on the probe' in ended.out, ended.err
  assert bundle.open(tmp_path / 'run').cfg == bundle.open(folder).cfg


@pytest.mark.thorough
def test_cut_and_vocabulary_write_what_they_say(folder, tmp_path):
  ended = launcher.run('cut', f'--source={folder}', f'--target={tmp_path}/small',
                       '--layers=2', '--width=8')
  assert '2 layers, vectors of 8 numbers' in ended.out
  (tmp_path / 'tokens.txt').write_text('zzyzx\n\nqqqq\n')
  ended = launcher.run('vocabulary', f'--source={tmp_path}/small',
                       f'--target={tmp_path}/words', f'--tokens={tmp_path}/tokens.txt')
  assert '30524 token vectors, 30522 before' in ended.out
  ended = launcher.run('vocabulary', f'--source={tmp_path}/small',
                       f'--target={tmp_path}/tasks', '--tasks=sts=[STS]')
  assert bundle.open(tmp_path / 'tasks').prompts == {'sts': '[STS]'}
  assert bundle.open(tmp_path / 'words').cfg.embedding_dim == 8
