"""A run that goes on with other devices, and processes of which one is killed."""

import dataclasses
import json
import signal
import socket
import time

import numpy as np
import pytest

from jaxembed import config
from tests.helpers import lives, object_servers, tiny_run
from tests.helpers.lives import Life

# What docs/pods.md promises: float32 sums in another order, through Adam's root.
BOUND = 2e-5


def _written(cfg, file):
  file.write_text(json.dumps(config.to_dict(cfg)))
  return file


@pytest.mark.thorough
def test_a_run_goes_on_with_other_devices(tmp_path, minilm):
  """8 devices, then 4, then 16, fsdp and then tensor: the same batches, and parameters
  within the bound of a run on 8 alone."""
  cfg = tiny_run.in_folder(tmp_path, minilm, 37, steps=12, schedule='constant')
  cfg.stages[0].data.batch_size = 16
  whole, moved = tmp_path / 'whole', tmp_path / 'moved'
  file = _written(cfg, tmp_path / 'config.json')
  assert Life(file, whole, tmp_path / 'whole.log', devices=8).end() == 0
  for steps, devices, mesh in ((4, 8, {}), (8, 4, {'data': 2, 'fsdp': 2}),
                               (12, 16, {'data': 4, 'fsdp': 2, 'tensor': 2})):
    cfg.stages[0] = dataclasses.replace(cfg.stages[0], steps=steps)
    cfg.mesh = config.MeshConfig(**mesh)
    life = Life(_written(cfg, tmp_path / 'now.json'), moved, tmp_path / 'moved.log',
                devices=devices)
    assert life.end() == 0, life.output()
  assert lives.by_step(tmp_path / 'moved.log') == lives.by_step(tmp_path / 'whole.log')
  want, got = map(tiny_run.parameters, (whole, moved))
  worst = max(float(np.abs(np.asarray(got[k]) - np.asarray(want[k])).max())
              for k in want)
  print(f'parameters differ by at most {worst:.1e}')
  assert worst < BOUND
  starts = json.loads((moved / 'manifest.json').read_text())['starts']
  assert [s['step'] for s in starts if s.get('topology')] == [4, 8]
  assert any('tensor was 1, is 2' in line for line in starts[2]['topology'])


@pytest.mark.thorough
@pytest.mark.parametrize('dies', [0, 1])
def test_a_process_that_is_killed_ends_the_other_by_name(tmp_path, minilm, dies):
  """Within 60 seconds; and the pair, started again, goes on to the same bits."""
  cfg = tiny_run.in_folder(tmp_path, minilm, 37, steps=12)
  cfg.checkpoint = config.CheckpointConfig(every=2)
  file = _written(cfg, tmp_path / 'config.json')

  def pair(run, name):
    where = f'localhost:{object_servers.free_port()}'
    return [Life(file, tmp_path / run, tmp_path / f'{name}{i}.log', devices=1,
                 several=(where, 2, i)) for i in range(2)]

  for life in pair('whole', 'whole'):
    assert life.end() == 0, life.output()
  both = pair('killed', 'first')
  for life in both:
    life.until_step(5)
  begun = time.monotonic()
  assert both[dies].end(signal.SIGKILL) == -signal.SIGKILL
  assert both[1 - dies].end() != 0
  took, said = time.monotonic() - begun, both[1 - dies].output()
  print(f'process {dies} killed: the other ended after {took:.0f} s')
  assert took < 60
  host = socket.gethostname()
  told = [f'process 1 on host {host} has given no sign'] if dies else [
      'leader', f' 0 on {host}']
  assert all(t in said for t in told), said
  for life in pair('killed', 'second'):
    assert life.end() == 0, life.output()
  assert tiny_run.bits(tmp_path / 'killed') == tiny_run.bits(tmp_path / 'whole')


@pytest.mark.thorough
def test_processes_with_other_data_do_not_begin(tmp_path, minilm):
  cfg = tiny_run.in_folder(tmp_path, minilm, 37, steps=30)
  ours = _written(cfg, tmp_path / 'config.json')
  cfg.stages[0].optim.peak_lr = 2e-3
  theirs = _written(cfg, tmp_path / 'other.json')
  where = f'localhost:{object_servers.free_port()}'
  both = [Life(file, tmp_path / 'run', tmp_path / f'{i}.log', devices=1,
               several=(where, 2, i)) for i, file in enumerate((ours, theirs))]
  for life in both:
    assert life.end() != 0
    assert 'process 1 (host ' in life.output() and 'peak_lr is 0.002' in life.output()
  assert not (tmp_path / 'run' / 'checkpoints').exists()
