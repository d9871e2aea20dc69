"""What training refuses, before work is lost."""

import dataclasses

import pytest

from jaxembed import config
from jaxembed.train import loop
from tests.helpers import tiny_run

pytestmark = pytest.mark.usefixtures('compiled_once')


def test_batch_that_does_not_divide_the_mesh(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].data.batch_size = 12
  with pytest.raises(ValueError, match=r'batch_size=12 .* 8 devices .*; use 8 or 16'):
    loop.train(cfg, tmp_path / 'run', log=lambda _: None)
  assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows, clip_norm=0.0)
  cfg.stages[0].optim.peak_lr = 1e30
  with pytest.raises(FloatingPointError, match='at step .*peak_lr'):
    loop.train(cfg, tmp_path, log=lambda _: None)
  assert not [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]


@pytest.mark.parametrize('change,message', [
    ({'pooling': 'layer_attention'}, 'layer_attention.*pack=0'),
    ({'append_token': '[NONE]'}, r"no token '\[NONE\]'"),
    ({'append_token': '[SEP]', 'eos_text': '[SEP]'}, 'leave one out'),
    ({}, 'a loss by the scores of a teacher .* set num_negatives')])
def test_what_cannot_be_trained_is_refused_first(tiny, rows, tmp_path, change, message):
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].data.pack = 64
  cfg.model = dataclasses.replace(cfg.model, **change)
  if not change:
    cfg.stages[0].loss = config.LossConfig(name='distill_kl')
  with pytest.raises(ValueError, match=message):
    loop.train(cfg, tmp_path, log=lambda _: None)
  assert not (tmp_path / 'manifest.json').exists()
  assert not (tmp_path / 'checkpoints').exists() or not [
      p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]


def test_a_loss_by_scores_without_scores_is_refused_before_weights_are_read(
    tiny, rows, tmp_path, monkeypatch):
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].loss = config.LossConfig(name='distill_kl')
  cfg.stages[0].data.num_negatives = 1
  monkeypatch.setattr(loop.start, 'start', lambda *_: pytest.fail('weights were read'))
  with pytest.raises(ValueError, match="source 'rows'.*40 rows read none has two"):
    loop.train(cfg, tmp_path, log=lambda _: None)
  assert not (tmp_path / 'config.json').exists()
