"""metrics.jsonl holds every step once, whatever was killed when."""

import math

import numpy as np
import pytest

from jaxembed.train import metrics, report


def test_round_trip(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.write(1, {'train/loss': 2.5})
  writer.write(2, {'train/loss': math.nan})
  writer.close()
  assert metrics.read(tmp_path) == [
      {'step': 1, 'train/loss': 2.5}, {'step': 2, 'train/loss': None}]
  assert list((tmp_path / 'tensorboard').glob('events*'))


def test_resume_cuts_what_came_after_the_checkpoint(tmp_path):
  writer = metrics.Writer(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, {'train/loss': float(step)})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 4, "train/lo')  # killed in the middle of a line
  writer = metrics.Writer(tmp_path, start_step=2)
  writer.write(3, {'train/loss': 30.0})
  writer.close()
  assert [(r['step'], r['train/loss']) for r in metrics.read(tmp_path)] == [
      (1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_line_that_is_no_record_takes_no_other_with_it(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(
      b'{"step": 1}\n\xff\n{"st\n[1]\n{"a": 1}\n{"step": 2}\n')
  assert metrics.read(tmp_path) == [{'step': 1}, {'step': 2}]


@pytest.mark.parametrize('scores', [None, {'a': 'good'}, {'a': np.ones(3)}])
def test_what_is_no_number_is_named(tmp_path, scores):
  writer = metrics.Writer(tmp_path)
  with pytest.raises(ValueError, match='step 3: .* are no scores; give a number'):
    writer.write(3, scores)
  writer.close()


def test_picture(tmp_path):
  writer = metrics.Writer(tmp_path)
  for step in range(5):
    writer.write(step, {'train/loss': 1 / (step + 1), 'eval/ndcg@10': step / 5})
  writer.close()
  assert report.plot(tmp_path, 'a run').read_bytes()[:4] == b'\x89PNG'
