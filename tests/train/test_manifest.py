"""A manifest repeats its run bit for bit, or says what has changed."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxembed import config
from jaxembed.train import loop, manifest
from launch import arguments
from tests.helpers import tiny_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def run(tmp_path_factory, minilm):
  """Folder of a run of two steps that was stopped after the first."""
  folder = tmp_path_factory.mktemp('manifest')
  cfg = tiny_run.in_folder(folder, minilm, steps=2)
  with tiny_run.shared_updates():
    loop.train(cfg, folder / 'run', log=lambda _: None, should_stop=lambda: True)
    loop.train(cfg, folder / 'run', log=lambda _: None)
  return folder / 'run'


def _read(folder):
  return json.loads((folder / 'manifest.json').read_text())


@pytest.mark.thorough
def test_says_what_the_run_was_made_of(run):
  found = _read(run)
  stored = config.from_dict(config.Config, found['config'])
  assert manifest.fingerprints(stored) == found['data']
  assert found['data']['stages[0]/rows']['rows'] == 40
  assert [s['step'] for s in found['starts']] == [0, 1]
  start = found['starts'][0]
  assert start['versions']['jax'] and start['versions']['orbax-checkpoint']
  assert start['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert start['devices'] == '8 x cpu' and start['processes'] == 1


@pytest.mark.thorough
def test_the_command_line_repeats_it_bit_for_bit(run, tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'launch.train', f'--config={run}/manifest.json',
       f'--workdir={tmp_path}', '--config.log_every=7', '--profile_steps=2:2'],
      cwd=ROOT, env=os.environ | {'XLA_FLAGS': os.environ['TESTS_XLA_FLAGS']},
      capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  want, got = tiny_run.parameters(run), tiny_run.parameters(tmp_path)
  assert want.keys() == got.keys()
  for path, value in want.items():
    assert np.asarray(value).tobytes() == np.asarray(got[path]).tobytes(), path
  # Traced here: in a process that has libtpu but no TPU the profiler dies.
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  assert _read(tmp_path)['data'] == _read(run)['data']
  assert _read(tmp_path)['config']['repeats'] == f'{run}/manifest.json'


def _repeated(model, folder):
  """An experiment that repeats the one whose start is recorded in `folder`."""
  cfg = tiny_run.experiment(model, tiny_run.write_rows(folder / 'rows.jsonl'))
  manifest.record(folder, cfg, loop.sharding.make_mesh(), 0)
  cfg = config.from_dict(config.Config, _read(folder)['config'])
  cfg.repeats = str(folder / 'manifest.json')
  return cfg


def test_other_data_is_refused_by_source(tiny, tmp_path):
  cfg = _repeated(tiny, tmp_path)
  rows = tiny_run.write_rows(tmp_path / 'rows.jsonl', count=41)
  with pytest.raises(ValueError, match=r'data of stages\[0\]/rows .* 40 .* 41 rows'):
    loop.train(cfg, tmp_path / 'new', log=lambda _: None)
  cfg.repeats = ''
  tiny_run.write_rows(rows)
  before = (tmp_path / 'manifest.json').read_bytes()
  rows.write_text(rows.read_text().replace('number 3', 'number 4'))
  with pytest.raises(ValueError, match=f'not what {tmp_path}/manifest.json was made'):
    manifest.record(tmp_path, cfg, loop.sharding.make_mesh(), 1)
  assert (tmp_path / 'manifest.json').read_bytes() == before


@pytest.mark.parametrize('text, says', [
    ('{"a": ', 'manifest.json is no plain JSON'), ('{"a": 1}', "it has no 'config'")])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text, says):
  (tmp_path / 'manifest.json').write_text(text)
  with pytest.raises(ValueError, match=says):
    manifest.last_stop(tmp_path)


def test_differences_between_starts_are_told(tiny, tmp_path):
  cfg = _repeated(tiny, tmp_path)
  (tmp_path / 'new').mkdir()
  told = manifest.record(tmp_path / 'new', cfg, loop.sharding.make_mesh((4, 2, 1)), 0)
  assert told == ['start.mesh.data was 8, is 4', 'start.mesh.fsdp was 1, is 2']


def test_a_json_config_is_a_run_to_repeat_and_a_name_a_recipe():
  rest = ['--config.seed=1', '--config.name=two\nlines', '--workdir=x.json']
  script = f'{ROOT}/configs/repeat.py'
  for given, want in ((['--config=a/b.json'], [f'--config={script}:a/b.json']),
                      (['--config', 'b.json'], ['--config', f'{script}:b.json']),
                      (['--config=a/b.py'], ['--config=a/b.py']),
                      (['--config=two_stage_cpu:a/b'],
                       [f'--config={ROOT}/configs/two_stage_cpu.py:a/b'])):
    assert arguments.experiments(['train', *given, *rest]) == ['train', *want, *rest]
