"""Two processes train a run at a URL, each on a disk of its own, as on one disk."""

import json
import signal

import pytest

from jaxembed import config, workdir
from jaxembed.files import url
from tests.helpers import gcs_server, lives, object_servers, tiny_run
from tests.helpers.lives import Life

pytest.importorskip('obstore')
pytestmark = pytest.mark.slow
STEPS, ROWS = 16, 37


def _pair(file, run, folder, name, **more):
  where = f'localhost:{object_servers.free_port()}'
  return [Life(file, run, folder / f'{name}{i}.log', devices=4, several=(where, 2, i),
               **more) for i in range(2)]


def _end(pair, codes=(0, 0)):
  assert tuple(life.end() for life in pair) == codes, '\n'.join(
      life.output() for life in pair)


def test_a_pair_at_a_url_is_stopped_killed_and_goes_on(tmp_path, minilm, monkeypatch):
  cfg = tiny_run.in_folder(tmp_path, minilm, ROWS, steps=STEPS)
  cfg.mesh = config.MeshConfig(data=1, fsdp=8)  # each holds a half
  cfg.checkpoint = config.CheckpointConfig(every=4)
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(config.to_dict(cfg)))
  _end(_pair(file, tmp_path / 'whole', tmp_path, 'whole'))

  there = 'gs://bucket/run'
  with gcs_server.opened() as port:
    environment = gcs_server.environment(port, tmp_path)
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    monkeypatch.setenv('HOME', str(tmp_path))
    first = _pair(file, there, tmp_path, 'killed')
    first[0].until(lambda: workdir.steps(there))
    first[1].end(signal.SIGKILL)
    assert first[0].end() != 0  # within the time that hosts.py gives a lost one
    kept = workdir.steps(there)
    assert kept and kept[-1] < STEPS
    log = tmp_path / 'killed1.log'
    batches = lambda: log.read_text().count('\n')
    before = batches()
    second = _pair(file, there, tmp_path, 'killed')
    second[1].until(lambda: batches() > before + 3)
    second[1].process.send_signal(signal.SIGTERM)  # to one host alone
    _end(second)
    stopped = workdir.steps(there)[-1]
    assert stopped > kept[-1]
    if stopped < STEPS:
      _end(_pair(file, there, tmp_path, 'killed'))
    for i in range(2):
      assert (lives.by_step(tmp_path / f'killed{i}.log')
              == lives.by_step(tmp_path / f'whole{i}.log'))
    # One process of other devices reads it: the same bits.
    assert tiny_run.bits(there) == tiny_run.bits(tmp_path / 'whole')
    names = url.Objects(there).names()
    newest = f'checkpoints/{STEPS}/'
    assert {f'{newest}commit_success.txt', f'{newest}share_1.txt'} <= names.keys()
    shares = [n for n in names if n.startswith(newest) and 'process_1/d/' in n]
    assert shares and sum(names[n].size for n in shares) > 0
    assert not [n for n in names if n.endswith('.lock')]
