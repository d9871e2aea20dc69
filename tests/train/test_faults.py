"""What a run survives: kills in every phase, full and read-only disks, odd clocks."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxembed import config
from jaxembed.convert import exporters
from jaxembed.embedder import Embedder
from jaxembed.train import fit, pulse
from tests.helpers import lives, tiny_run
from tests.helpers.lives import Life

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def home(tmp_path_factory, minilm):
  """A folder with an experiment of 12 steps that evaluates, and its whole run."""
  folder = tmp_path_factory.mktemp('faults')
  cfg = tiny_run.in_folder(folder, minilm, 37, steps=12)
  cfg.eval = config.EvalConfig(every=4, batch_size=8, source=config.SourceConfig(
      name='held', path=str(folder / 'rows.jsonl')))
  (folder / 'config.json').write_text(json.dumps(config.to_dict(cfg)))
  life = Life(folder / 'config.json', folder / 'whole', folder / 'whole.log')
  assert life.end() == 0, life.output()
  return folder


def _phase(run: pathlib.Path) -> str:
  return pulse.read(run).get(0, {}).get('phase', '')


# How a phase is seen from outside.
_PHASES = {
    'claim': lambda run, life: (run / 'run.lock').exists(),
    'start': lambda run, life: _phase(run) == 'starting',
    'first compile': lambda run, life: _phase(run) == 'training',
    'evaluation': lambda run, life: _phase(run) == 'evaluating',
    'save': lambda run, life: life.saving(),
    'last step': lambda run, life: (run / 'checkpoints/12').exists(),
}


@pytest.mark.parametrize('phase', _PHASES)
def test_a_kill_in_any_phase_costs_no_bit(home, tmp_path, phase):
  run, log = tmp_path / 'run', tmp_path / 'log.log'
  life = Life(home / 'config.json', run, log)
  life.until(lambda: _PHASES[phase](run, life))
  assert life.end(signal.SIGKILL) == -signal.SIGKILL
  again = Life(home / 'config.json', run, log)
  assert again.end() == 0, again.output()
  assert tiny_run.bits(run) == tiny_run.bits(home / 'whole')
  assert lives.by_step(log) == lives.by_step(home / 'whole.log')


def test_a_kill_in_an_export_leaves_nothing_that_counts(home, tmp_path):
  target = tmp_path / 'exported'
  script = ('import sys; from jaxembed import front\n'
            'front.export(sys.argv[1], sys.argv[2])')
  process = subprocess.Popen(
      [sys.executable, '-c', script, str(home / 'whole'), str(target)], cwd=ROOT,
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  end = time.monotonic() + 300
  while not list(tmp_path.glob('.exported.*.partial')):
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.005)
  process.kill()
  process.wait()
  assert not target.exists()
  exporters.export(Embedder.load(home / 'whole').to_bundle(), target)
  assert os.listdir(tmp_path) == ['exported']


@pytest.mark.parametrize('damage', ['missing', 'cut', 'garbled'])
def test_a_newest_checkpoint_that_is_lost_costs_its_steps_alone(home, tmp_path, damage):
  run = tmp_path / 'run'
  shutil.copytree(home / 'whole', run)
  newest = run / 'checkpoints' / '12'
  if damage == 'missing':
    shutil.rmtree(newest)
  else:
    file = max(newest.rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)
    data = file.read_bytes()
    half = len(data) // 2
    file.write_bytes(data[:half] if damage == 'cut' else
                     data[:half] + bytes(x ^ 0x55 for x in data[half:]))
  life = Life(home / 'config.json', run, tmp_path / 'log.log')
  assert life.end() == 0, life.output()
  assert tiny_run.bits(run) == tiny_run.bits(home / 'whole')


def test_a_clock_that_goes_backwards_changes_nothing(home, tmp_path, monkeypatch):
  cfg = config.from_dict(config.Config, json.loads((home / 'config.json').read_text()))
  stops = iter([False] * 5 + [True])
  quiet = {'log': lambda _: None}
  fit.run(cfg, tmp_path / 'run', should_stop=lambda: next(stops), **quiet)
  for path in (tmp_path / 'run').rglob('*'):
    os.utime(path, (2e9, 2e9))  # written in the future
  now = time.time
  monkeypatch.setattr(time, 'time', lambda: now() - 86400)
  fit.run(cfg, tmp_path / 'run', **quiet)
  monkeypatch.undo()
  fit.run(cfg, tmp_path / 'whole', **quiet)
  assert tiny_run.bits(tmp_path / 'run') == tiny_run.bits(tmp_path / 'whole')


_TRAIN = '"$PYTHON" -c "$SCRIPT" "$CFG" "$DISK/run" "$DISK/log"'


def _on_a_disk_of_its_own(home, tmp_path, script: str):
  """Runs a script of the shell whose folder $DISK is a file system of its own."""
  (tmp_path / 'disk').mkdir()
  enter = ['unshare', '--mount', '--map-root-user']
  if shutil.which('unshare') is None or subprocess.run(
      [*enter, 'true'], capture_output=True).returncode:
    pytest.skip('no right to mount a file system here')
  flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=2')
  ended = subprocess.run(
      [*enter, 'bash', '-c', script], cwd=ROOT, capture_output=True, text=True,
      env=os.environ | {
          'XLA_FLAGS': flags, 'PYTHON': sys.executable, 'SCRIPT': lives.SCRIPT,
          'CFG': str(home / 'config.json'), 'DISK': str(tmp_path / 'disk'),
          'OUT': str(tmp_path / 'out')})
  assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
  return ended


def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(home, tmp_path):
  size = sum(p.stat().st_size for p in (home / 'whole').rglob('*') if p.is_file())
  ended = _on_a_disk_of_its_own(home, tmp_path, f"""
      mount -t tmpfs -o size={size // 2} none "$DISK" || exit 1
      {_TRAIN} && exit 2
      mount -o remount,size=1g "$DISK" && {_TRAIN} && cp -r "$DISK" "$OUT" """)
  assert 'No space left' in ended.stderr or 'disk is full' in ended.stderr
  assert tiny_run.bits(tmp_path / 'out/run') == tiny_run.bits(home / 'whole')


def test_a_read_only_disk_is_refused_and_left_as_it_is(home, tmp_path):
  ended = _on_a_disk_of_its_own(home, tmp_path, f"""
      mount -t tmpfs none "$DISK" && cp -r "{home}/whole" "$DISK/run" || exit 1
      mount -o remount,ro "$DISK"
      {_TRAIN} && exit 2
      cp -r "$DISK" "$OUT" """)
  assert 'Read-only file system' in ended.stderr
  assert tiny_run.bits(tmp_path / 'out/run') == tiny_run.bits(home / 'whole')
