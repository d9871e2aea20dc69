"""What `jaxembed status` says of runs at every stage."""

import json

import pytest

from jaxembed.files import alone
from jaxembed.train import pulse, status
from tests.helpers import launcher


@pytest.fixture
def run(tmp_path):
  """A run of one process that has done 40 of 100 steps, 2 s each by its own clock."""
  (tmp_path / 'manifest.json').write_text(json.dumps({
      'config': {'name': 'tiny', 'stages': [{'steps': 60}, {'steps': 40}]}, 'data': {},
      'starts': [{}]}))
  (tmp_path / 'metrics.jsonl').write_text('{"step": 40, "train/loss": 0.25}\n')
  for step in (20, 40):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  now = [1000.0]
  sign = pulse.Pulse(tmp_path, 0, 100, lambda _: None, clock=lambda: now[0],
                     wall=lambda: now[0])
  sign.phase('training', 'one')
  for step in range(1, 41):
    now[0] += 10 if step == 1 else 2  # the first is compiled
    sign.done(step)
  return tmp_path, sign, now


def test_a_run_under_way_and_one_that_gives_no_sign(run):
  folder, sign, now = run
  with alone.alone(folder / 'run.lock', '', ''):
    found = status.of(folder, now=now[0])
    assert (found['state'], found['step'], found['last']) == ('running', 40, 100)
    assert found['loss'] == 0.25 and found['saved'] == [20, 40]
    assert found['left'] == pytest.approx(2 * 60)
    assert found['goodput'] == pytest.approx(2 * 39 / 88)
    assert status.of(folder, now=now[0] - 50)['sign_age'] == 0  # a clock went back
    assert status.of(folder, now=now[0] + 100)['state'] == 'stalled'
    sign.phase('evaluating')
    assert status.of(folder, now=now[0] + 100)['state'] == 'running'
  assert status.of(folder, now=now[0])['state'] == 'killed'
  again = pulse.Pulse(folder, 20, 100, lambda _: None, wall=lambda: now[0])
  again.phase('stopped')  # of 39 steps that were timed, half are lost
  assert status.of(folder, now=now[0])['state'] == 'stopped'
  assert pulse.read(folder)[0]['productive'] == pytest.approx(39)


def test_the_launcher_says_it_in_lines(run):
  folder, sign, _ = run
  sign.phase('ended')
  (folder / 'pulse-1.json').write_text(json.dumps(
      {'host': 'slow', 'process': 1, 'step': 40, 'data_seconds': 1.5}))
  (folder / 'pulse-2.json').write_text('{"host": "cut')
  said = launcher.run('status', f'--workdir={folder}', '--nopicture').out
  assert 'tiny: ended' in said and '40 of 100' in said and 'steps 20, 40' in said
  assert 'slow (process 1): step 40, 1.500 s a step for data: a straggler' in said
  found = json.loads(launcher.run('status', f'--workdir={folder}', '--json').out)
  assert found['state'] == 'ended'
  assert 'is no run' in launcher.run('status', f'--workdir={folder}/no').error
