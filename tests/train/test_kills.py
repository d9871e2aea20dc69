"""One run, killed thirty times: the same bits, every record in its turn."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxembed import config
from jaxembed.train import metrics
from tests.helpers import tiny_run

ROOT = pathlib.Path(__file__).parents[2]

STEPS, ROWS = 200, 37
# When a life ends: in a save, between two moments of training, by a preemption
# notice, or before the first step.
ENDS = ['save'] * 15 + ['step'] * 7 + ['notice'] * 4 + ['start'] * 4

# Trains argv[1] in argv[2], writing every batch that is used to argv[3].
SCRIPT = """
import json, sys, time
from jaxembed import config, data
from jaxembed.train import loop
from launch import cli

drawn = data.batches

def logged(*args, **kw):
  with open(sys.argv[3], 'a') as log:
    for batch, info in drawn(*args, **kw):
      ids = batch.pairing.query_id.tolist()
      log.write(json.dumps([info.step, [row for _, row in info.rows], ids]) + '\\n')
      log.flush()
      time.sleep(0.02)  # steps of a length that a signal can hit
      yield batch, info

data.batches = logged
loop.train(config.from_dict(config.Config, json.load(open(sys.argv[1]))), sys.argv[2],
           should_stop=cli.stop_on_signals())
"""


class _Life:
  """One process of a run, and what it has written about its batches."""

  def __init__(self, cfg: pathlib.Path, run: pathlib.Path, log: pathlib.Path):
    log.touch()
    self._log, self._checkpoints = log, run / 'checkpoints'
    self._said = log.with_suffix('.out').open('w')
    flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=2')
    self.process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(cfg), str(run), str(log)], cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': flags}, stdout=self._said, stderr=self._said)

  def until(self, happened):
    """Waits for `happened()`; the process must not end before."""
    deadline = time.monotonic() + 300
    while not happened():
      assert self.process.poll() is None, self._output()
      assert time.monotonic() < deadline, self._output()
      time.sleep(0.003)

  def until_step(self, step: int):
    """Waits until a batch of that step or a later one was used."""
    self.until(lambda: any(
        json.loads(line)[0] >= step
        for line in self._log.read_text().rsplit('\n', 2)[-2:-1]))

  def saving(self) -> bool:
    """A checkpoint is on its way to the disk."""
    return any(self._checkpoints.glob('*-tmp*'))

  def end(self, sign=None) -> int:
    if sign:
      self.process.send_signal(sign)
    code = self.process.wait(300)
    self._said.close()
    return code

  def _output(self) -> str:
    return self._log.with_suffix('.out').read_text()[-3000:]


def _read(log: pathlib.Path) -> list:
  """[step, rows, query ids] of every batch."""
  return [json.loads(line) for line in log.read_text().splitlines()]


def _by_step(log: pathlib.Path) -> dict[int, list]:
  """Batches by step; a step that was done again had the same one."""
  found = {}
  for step, *batch in _read(log):
    assert found.setdefault(step, batch) == batch, step
  return found


@pytest.mark.thorough
def test_thirty_kills_change_nothing(tmp_path, minilm):
  cfg = tiny_run.in_folder(tmp_path, minilm, ROWS, steps=STEPS)
  cfg.checkpoint = config.CheckpointConfig(every=3)
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(config.to_dict(cfg)))
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert _Life(file, whole, tmp_path / 'whole.log').end() == 0

  rng, unfinished = np.random.default_rng(0), 0
  for i, how in enumerate(rng.permutation(ENDS)):
    life = _Life(file, killed, tmp_path / 'killed.log')
    if how == 'start':
      time.sleep(rng.uniform(0.1, 6))
    else:
      life.until_step(6 * (i + 1) + int(rng.integers(5)))
      if how == 'save':
        life.until(life.saving)
      time.sleep(rng.uniform(0, 0.02 if how == 'save' else 0.2))
    code = life.end(signal.SIGTERM if how == 'notice' else signal.SIGKILL)
    assert code == (0 if how == 'notice' else -signal.SIGKILL), (i, how, code)
    # One that ends early may still see what the life before it left.
    unfinished += how in ('save', 'step') and life.saving()
  assert _Life(file, killed, tmp_path / 'killed.log').end() == 0
  print(f'{unfinished} of {len(ENDS)} kills left a save unfinished')
  assert unfinished >= len(ENDS) // 3
  assert not list((killed / 'checkpoints').glob('*.unreadable'))

  batches = _by_step(tmp_path / 'killed.log')
  assert batches == _by_step(tmp_path / 'whole.log')
  assert sorted(batches) == list(range(STEPS))
  seen = [row for step in range(STEPS) for row in batches[step][0]]
  for i in range(0, len(seen) - ROWS + 1, ROWS):  # each pass: every record once
    assert sorted(seen[i:i + ROWS]) == list(range(ROWS))
  want, got = tiny_run.parameters(whole), tiny_run.parameters(killed)
  assert want.keys() == got.keys()
  for path, value in want.items():
    assert np.asarray(value).tobytes() == np.asarray(got[path]).tobytes(), path
  curves = [[(r['step'], r['train/loss']) for r in metrics.read(run)]
            for run in (whole, killed)]
  assert [step for step, _ in curves[0]] == list(range(1, STEPS + 1))
  assert curves[0] == curves[1]
