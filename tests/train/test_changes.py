"""A run's folder belongs to one configuration, but for what may change."""

import copy
import json

import pytest

from jaxembed import config
from jaxembed.train import changes


def _config(steps=(6, 4), **kw):
  stages = [config.StageConfig(name=f's{i}', steps=n, data=config.DataConfig(
      sources=[config.SourceConfig(name='a', path='a.jsonl')]))
      for i, n in enumerate(steps)]
  return config.Config(model=config.ModelSpec(source='somewhere'), stages=stages, **kw)


def _changed(change, **kw):
  cfg = _config(**kw)
  change(cfg)
  return cfg


@pytest.fixture
def folder(tmp_path):
  changes.write(tmp_path, _config())
  return tmp_path


@pytest.mark.parametrize('done, cfg', [
    (6, _config()), (8, _config(log_every=99, name='other')),
    (8, _config(mesh=config.MeshConfig(fsdp=2))), (8, _config(repeats='x')),
    (8, _config(eval=config.EvalConfig(every=5, patience=2))),
    (8, _config(checkpoint=config.CheckpointConfig(keep=9))),
    (8, _config((6, 9))), (8, _config((6, 2))), (10, _config((6, 4, 5))),
    (6, _config((6,))), (3, _config((9, 4))), (6, _config((8, 4))),
    (8, _changed(lambda c: setattr(c.stages[1].data.sources[0], 'path', 'b/a.jsonl'))),
    (8, _changed(lambda c: setattr(c.stages[0].data.sources[0], 'path', 'b/a.jsonl'))),
    (8, _changed(lambda c: setattr(c.stages[1].data.sources[0], 'paths', ('b',)))),
    (8, _changed(lambda c: setattr(c.stages[1].data.sources[0], 'on_bad_row', 'skip'))),
    (6, _changed(lambda c: setattr(c.stages[1].optim, 'name', 'sgd'))),
    (8, _changed(lambda c: setattr(c.stages[1].data, 'prefetch', 0))),
    (8, _changed(lambda c: setattr(c.stages[1].data, 'check_rows', 7))),
    (8, _changed(lambda c: setattr(c.stages[1], 'token_budget', 4096))),
    (8, _changed(lambda c: setattr(c.stages[1].loss, 'impl', 'reference'))),
    (8, _changed(lambda c: setattr(c.stages[1].loss, 'exchange', 'ring'))),
    (0, _changed(lambda c: setattr(c.model, 'source', 'elsewhere'))),
    (0, _changed(lambda c: setattr(c, 'seed', 5)))])
def test_steps_that_are_done_keep_their_meaning_without_a_word(folder, done, cfg):
  changes.check(folder, cfg, done)


@pytest.mark.parametrize('done, change, message', [
    (8, lambda c: setattr(c.stages[1].optim, 'peak_lr', 0.5),
     r'stages\[1\]\.optim\.peak_lr was 2e-05, is 0.5'),
    (3, lambda c: setattr(c.stages[0].loss, 'temperature', 0.5), 'loss.temperature'),
    (3, lambda c: setattr(c.stages[0].data, 'batch_size', 8), 'data.batch_size'),
    (3, lambda c: setattr(c.stages[0].data.sources[0], 'weight', 2.0), 'weight'),
    (3, lambda c: c.stages[0].data.sources.append(
        config.SourceConfig(name='b', path='b')), r'data\.sources was'),
    (3, lambda c: setattr(c, 'seed', 7), 'config.seed was 0, is 7'),
    (8, lambda c: setattr(c.stages[0].optim, 'peak_lr', 0.5), 'peak_lr')])
def test_what_steps_under_way_mean_changes_when_asked_for(
    folder, done, change, message):
  cfg = _changed(change)
  with pytest.raises(ValueError, match=message + '.*--extend'):
    changes.check(folder, cfg, done)
  [told] = changes.check(folder, cfg, done, extend=True)
  assert ' was ' in told


@pytest.mark.parametrize('done, cfg, message', [
    (8, _config((7, 4)), 'All steps of this stage are done'),
    (8, _config((6, 1)), '2 steps of this stage are done; give no fewer'),
    (8, _config((6,)), 'keep it'), (3, _config((2, 4)), '3 steps of this stage'),
    (3, _changed(lambda c: setattr(c.model, 'pooling', 'cls')),
     'model of a run stays')])
def test_what_is_done_cannot_change(folder, done, cfg, message):
  with pytest.raises(ValueError, match=message):
    changes.check(folder, cfg, done, extend=True)


def test_a_model_that_only_moved_is_taken_and_another_one_asked_for(folder, tmp_path):
  for at in ('model', 'moved', 'other'):
    (tmp_path / at).mkdir()
    (tmp_path / at / 'config.json').write_text('{}' if at != 'other' else '{"a": 1}')
  for at, fits in (('moved', True), ('other', False)):
    cfg = _changed(lambda c, at=at: setattr(c.model, 'source', str(tmp_path / at)))
    if fits:
      changes.check(folder, cfg, 8)
      continue
    with pytest.raises(ValueError, match='goes on with its own weights.*--extend'):
      changes.check(folder, cfg, 8)
    changes.check(folder, cfg, 8, extend=True)


def test_after_divergence_the_optimiser_may_change(folder):
  cfg = _changed(lambda c: setattr(c.stages[1].optim, 'peak_lr', 1e-6))
  changes.check(folder, cfg, 8, diverged=True)
  cfg.seed = 8
  with pytest.raises(ValueError, match='config.seed'):
    changes.check(folder, cfg, 8, diverged=True)


def test_a_folder_from_before_a_field_existed_has_its_default(folder):
  file = folder / 'config.json'
  stored = json.loads(file.read_text())
  for stage in stored['stages']:
    stage['optim']['carry'] = stage['optim'].pop('keep_optimizer_state')
    del stage['optim']['max_skipped'], stored['checkpoint']['best']
    stored['checkpoint']['best'] = ''
  file.write_text(json.dumps(stored))
  assert changes.check(folder, _config(), 8) == []
  other = copy.deepcopy(_config())
  other.stages[1].optim.keep_optimizer_state = True
  with pytest.raises(ValueError, match='keep_optimizer_state was False, is True'):
    changes.check(folder, other, 8)
