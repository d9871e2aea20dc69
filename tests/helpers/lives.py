"""A run in processes of its own, which tests end as they like."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from jaxembed.train import metrics
from tests.helpers import tiny_run

ROOT = pathlib.Path(__file__).parents[2]

# Trains argv[1] in argv[2], writing every batch that is used to argv[3]; argv[4:] are
# coordinator, processes and process, where several work together.
SCRIPT = """
import json, sys, time
import jax
if len(sys.argv) > 4:
  jax.distributed.initialize(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]),
                             heartbeat_timeout_seconds=40, shutdown_timeout_seconds=40)
from jaxembed import config, data
from jaxembed.train import fit
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
fit.run(config.from_dict(config.Config, json.load(open(sys.argv[1]))), sys.argv[2],
        should_stop=cli.stop_on_signals())
"""


_PATIENCE = 1800  # seconds: a busy machine stands still for minutes


class Life:
  """One process of a run, and what it has written about its batches."""

  def __init__(self, cfg: pathlib.Path, run: str | pathlib.Path, log: pathlib.Path, *,
               here: pathlib.Path | None = None,
               environment: dict[str, str] | None = None, devices: int = 2,
               several: tuple[str, int, int] | None = None):
    """`here`: where a run at a URL is worked on. `several`: coordinator, processes,
    process."""
    log.touch()
    self._log, self._checkpoints = log, (here or pathlib.Path(run)) / 'checkpoints'
    self._said = log.with_suffix('.out').open('w')
    flags = os.environ['XLA_FLAGS'].replace('device_count=8', f'device_count={devices}')
    self.process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(cfg), str(run), str(log),
         *map(str, several or ())], cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': flags} | (environment or {}),
        stdout=self._said, stderr=self._said)

  def until(self, happened):
    """Waits for `happened()`; the process must not end before."""
    deadline = time.monotonic() + _PATIENCE
    while not happened():
      assert self.process.poll() is None, self.output()
      assert time.monotonic() < deadline, self.output()
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
    try:
      code = self.process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
      self.process.kill()
      raise
    self._said.close()
    return code

  def output(self) -> str:
    """The first and the last of what it said."""
    said = self._log.with_suffix('.out').read_text()
    return said if len(said) < 6000 else f'{said[:3000]}\n...\n{said[-3000:]}'


def read(log: pathlib.Path) -> list:
  """[step, rows, query ids] of every batch."""
  return [json.loads(line) for line in log.read_text().splitlines()]


def by_step(log: pathlib.Path) -> dict[int, list]:
  """Batches by step; a step that was done again had the same one."""
  found = {}
  for step, *batch in read(log):
    assert found.setdefault(step, batch) == batch, step
  return found


def assert_same(steps: int, rows: int, logs: tuple[pathlib.Path, pathlib.Path],
                runs: tuple[str | pathlib.Path, str | pathlib.Path]):
  """Two runs took the same batches, every record in its turn, to the same bits."""
  whole, killed = map(by_step, logs)
  assert killed == whole
  assert sorted(killed) == list(range(steps))
  seen = [row for step in range(steps) for row in killed[step][0]]
  for i in range(0, len(seen) - rows + 1, rows):  # each pass: every record once
    assert sorted(seen[i:i + rows]) == list(range(rows))
  want, got = map(tiny_run.parameters, runs)
  assert want.keys() == got.keys()
  for path, value in want.items():
    assert np.asarray(value).tobytes() == np.asarray(got[path]).tobytes(), path
  curves = [[(r['step'], r['train/loss']) for r in metrics.read(run)] for run in runs]
  assert [step for step, _ in curves[0]] == list(range(1, steps + 1))
  assert curves[0] == curves[1]
