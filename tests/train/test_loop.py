"""A run resumes to the very bits of an uninterrupted one, and refuses to lie."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxembed import config
from jaxembed.convert import from_hf, tables
from jaxembed.embedder import Embedder
from jaxembed.train import loop, metrics
from tests.helpers import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures('compiled_once')


@pytest.fixture(scope='module')
def finished(tiny, rows, tmp_path_factory):
  folder = tmp_path_factory.mktemp('finished')
  loop.train(tiny_run.experiment(tiny, rows), folder, log=lambda _: None)
  return folder


def test_writes_what_it_promises(finished):
  records = metrics.read(finished)
  assert [r['step'] for r in records] == [1, 2, 3, 4, 5, 6]
  assert {'train/loss', 'train/lr', 'train/tokens_per_s', 'train/padding',
          'loss/accuracy@1', 'loss_of/rows', 'loss/hardest_negative_p50',
          'grad_norm/layer_00', 'grad_norm/embed'} <= set(records[-1])
  low, middle, high = (records[-1][f'loss/positive_score_p{p}'] for p in (10, 50, 90))
  assert low < middle < high
  assert (finished / 'report.png').stat().st_size > 1000
  assert (finished / 'model' / 'tokenizer.json').exists()
  assert json.loads((finished / 'config.json').read_text())['name'] == 'test'


def test_a_finished_run_is_left_alone(finished, tiny, rows):
  before = tiny_run.bits(finished)
  said = []
  state, _ = loop.train(tiny_run.experiment(tiny, rows), finished, log=said.append)
  assert int(state.step) == 6
  assert 'nothing to train' in said[-1]
  assert tiny_run.bits(finished) == before


def test_what_changes_the_stage_under_way_is_asked_for(finished, tiny, rows):
  """And the model, the steps that are done and the optimiser stay in any case."""
  def refused(message, extend=False, steps=9, **optim):
    cfg = tiny_run.experiment(tiny, rows, steps=steps)
    cfg.stages[0].optim = dataclasses.replace(cfg.stages[0].optim, **optim)
    for path, value in change.items():
      setattr(cfg.model, path, value)
    with pytest.raises(ValueError, match=message):
      loop.train(cfg, finished, log=lambda _: None, extend=extend)

  before = sorted(p.read_bytes() for p in finished.glob('*.json'))
  change = {}
  refused(r'peak_lr was 0\.001, is 0\.0001\. Give --extend', peak_lr=1e-4)
  refused('6 steps of this stage are done; give no fewer', steps=5, extend=True)
  change = {'pooling': 'cls'}
  refused('config.model.source=.*finished', extend=True)
  change = {}
  refused('belongs to another optimiser.* in a stage after it', name='sgd', extend=True)
  assert sorted(p.read_bytes() for p in finished.glob('*.json')) == before


def test_a_folder_of_something_else_is_left_as_it_is(finished, tiny, rows, tmp_path):
  def refused(folder, message):
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    with pytest.raises(ValueError, match=message):
      loop.train(tiny_run.experiment(tiny, rows), folder, log=lambda _: None)
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before

  refused(tiny, 'holds config.json, and not of a run')
  shutil.copytree(finished, tmp_path / 'run')
  (tmp_path / 'run/model/model_config.json').unlink()
  refused(tmp_path / 'run', r'checkpoints of the steps \[4, 6\], but .* is missing')


@pytest.mark.thorough
def test_a_run_goes_on_with_more_steps_stages_and_another_rate(tiny, rows, tmp_path):
  """More steps in the end are the steps of a longer run, bit for bit; data that lies
  elsewhere is the same data; --extend is recorded and keeps the optimiser's state."""
  def experiment(steps, data=rows, **optim):
    return tiny_run.experiment(tiny, data, steps=steps, schedule='constant', **optim)

  run, quiet = tmp_path / 'run', {'log': lambda _: None}
  loop.train(experiment(6), tmp_path / 'whole', **quiet)
  loop.train(experiment(4), run, **quiet)
  moved = shutil.copy(rows, tmp_path / 'rows.jsonl')
  loop.train(experiment(6, moved), run, **quiet)
  assert tiny_run.bits(run) == tiny_run.bits(tmp_path / 'whole')
  made = json.loads((run / 'manifest.json').read_text())
  assert made['config']['stages'][0]['steps'] == 4
  assert 'config.stages[0].steps was 4, is 6' in made['starts'][1]['changes']
  assert json.loads((run / 'config.json').read_text())['stages'][0]['steps'] == 6

  longer = experiment(8, moved)
  longer.stages[0].optim.weight_decay = 0.0
  longer.stages.append(dataclasses.replace(longer.stages[0], name='more', steps=2))
  said = []
  state, _ = loop.train(longer, run, log=said.append, extend=True)
  assert int(state.step) == 10
  assert any('weight_decay was 0.01, is 0.0' in s for s in said)
  assert metrics.read(run)[-1]['step'] == 10
  with pytest.raises(ValueError, match=r'stages\[0\].*All steps of this stage'):
    loop.train(dataclasses.replace(longer, stages=[
        dataclasses.replace(longer.stages[0], steps=9), longer.stages[1]]), run)


def test_other_data_for_the_stage_under_way_is_asked_for(
    finished, tiny, tmp_path):
  run, more = tmp_path / 'run', tiny_run.write_rows(tmp_path / 'rows.jsonl', 48)
  shutil.copytree(finished, run)
  cfg = tiny_run.experiment(tiny, more, steps=7)
  with pytest.raises(ValueError, match='40 rows.* 48 rows.*--extend'):
    loop.train(cfg, run, log=lambda _: None)
  loop.manifest.record(run, cfg, loop.sharding.make_mesh(), 6, extend=True)
  start = json.loads((run / 'manifest.json').read_text())['starts'][-1]
  assert any('48 rows' in c for c in start['changes'])


@pytest.mark.thorough
def test_a_run_that_met_a_bad_row_goes_on_once_it_is_mended(tiny, tmp_path):
  """With no step lost, and to the bits of a run that never met it."""
  path = tiny_run.write_rows(tmp_path / 'rows.jsonl', 40)
  good = path.read_text().splitlines(keepends=True)
  cfg = tiny_run.experiment(tiny, path, steps=6)
  cfg.checkpoint.every, cfg.stages[0].data.check_rows = 100, 0
  loop.train(cfg, tmp_path / 'whole', log=lambda _: None)
  drawn = loop.data.batches(cfg.stages[0].data, loop.bundle.open(
      tmp_path / 'whole', weights=False).load_tokenizer(), seed=0)
  *_, (_, info) = (next(drawn) for _ in range(4))
  bad = info.rows[0][1]  # first met in step 4
  path.write_text(''.join('{"query": "a", "positive": 5}\n' if i == bad else line
                          for i, line in enumerate(good)))
  said = []
  with pytest.raises(loop.data.BadRow, match=f'rows.jsonl:{bad + 1}'):
    loop.train(cfg, tmp_path / 'run', log=said.append)
  assert any('saved      step 3' in s for s in said)
  with pytest.raises(loop.data.BadRow):  # still there: no step is lost again
    loop.train(cfg, tmp_path / 'run', log=lambda _: None)
  path.write_text(''.join(good))
  loop.train(cfg, tmp_path / 'run', log=said.append)
  assert any('resumed    at step 3' in s for s in said)
  assert tiny_run.bits(tmp_path / 'run') == tiny_run.bits(tmp_path / 'whole')


@pytest.mark.thorough
def test_a_state_that_leads_to_nan_is_set_aside_and_a_lower_rate_goes_on(
    finished, tiny, rows, tmp_path):
  """The loss of step 1 is finite, its update far too large, the loss of step 2 NaN."""
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].optim.peak_lr, cfg.checkpoint.every = 1e30, 1
  said = []
  for _ in range(2):
    with pytest.raises(FloatingPointError, match='at step 2 .*Lower optim.peak_lr'):
      loop.train(cfg, tmp_path, log=said.append)
    assert loop.checkpoint.steps(tmp_path / 'checkpoints') == []
  assert any('set aside as diverged-1_2' in s for s in said)
  cfg.stages[0].optim.peak_lr, cfg.checkpoint.every = 1e-3, 3
  loop.train(cfg, tmp_path, log=lambda _: None, should_stop=lambda: True)
  cfg.stages[0].optim.peak_lr = 1e30  # diverges again, now with a step to go back to
  with pytest.raises(FloatingPointError):
    loop.train(cfg, tmp_path, log=lambda _: None, extend=True)
  assert loop.checkpoint.steps(tmp_path / 'checkpoints') == [1]
  cfg.stages[0].optim.peak_lr = 1e-3
  loop.train(cfg, tmp_path, log=lambda _: None)  # as the message says, and no more
  assert tiny_run.bits(tmp_path) == tiny_run.bits(finished)


@pytest.mark.thorough
def test_an_update_that_ruins_the_parameters_is_never_saved(
    finished, tiny, rows, tmp_path, monkeypatch):
  """Whatever lies between a finite loss and a state that is not."""
  make = loop.step.make_update

  def ruined(*args, **kwargs):
    update = make(*args, **kwargs)

    def run(state, batch):
      state, values = update(state, batch)
      if int(state.step) == 4:
        state = dataclasses.replace(state, params=jax.tree.map(
            lambda x: x * np.inf, state.params))
      return state, values
    return run

  monkeypatch.setattr(loop.step, 'make_update', ruined)
  with pytest.raises(FloatingPointError, match='after step 4 .* was not saved'):
    loop.train(tiny_run.experiment(tiny, rows), tmp_path, log=lambda _: None)
  assert loop.checkpoint.steps(tmp_path / 'checkpoints') == [2]
  monkeypatch.undo()
  loop.train(tiny_run.experiment(tiny, rows), tmp_path, log=lambda _: None)
  assert tiny_run.bits(tmp_path) == tiny_run.bits(finished)


@pytest.mark.thorough
def test_the_best_is_kept_patience_ends_a_run_and_a_kill_loses_no_score(
    tiny, rows, tmp_path):
  scores = iter([0.5, 0.3, 0.9, 0.6, KeyboardInterrupt(), 0.4, 0.7, 0.95])
  asked = []

  def evaluate(params, *_):
    score = next(scores)
    if isinstance(score, BaseException):
      raise score
    asked.append(score)
    return {'eval/ndcg@10': score}

  cfg = tiny_run.experiment(tiny, rows, steps=9)
  cfg.eval = config.EvalConfig(every=1, patience=2)
  cfg.checkpoint = config.CheckpointConfig(every=4, keep=1)
  said = []
  train = lambda: loop.train(cfg, tmp_path, evaluate=evaluate, log=said.append)
  with pytest.raises(KeyboardInterrupt):  # in the evaluation of step 4
    train()
  train()
  assert asked == [0.5, 0.3, 0.9, 0.6, 0.4]
  evaluated = [r['step'] for r in metrics.read(tmp_path) if 'eval/ndcg@10' in r]
  assert evaluated == [0, 1, 2, 3, 4]
  assert any('nothing to train' in s for s in said)
  assert loop.checkpoint.steps(tmp_path / 'checkpoints') == [2, 4]
  assert loop.checkpoint.best(tmp_path / 'checkpoints') == {
      'step': 2, 'metric': 'eval/ndcg@10', 'score': 0.9}
  _, step = loop.checkpoint.load_params(tmp_path / 'checkpoints', 'best')
  assert step == 2 and (tmp_path / 'report.png').exists()
  vectors = [Embedder.load(tmp_path, step=s).encode('number 3') for s in ('best', 2, 4)]
  np.testing.assert_array_equal(vectors[0], vectors[1])
  assert np.any(vectors[0] != vectors[2])
  cfg.eval.patience, cfg.eval.every, cfg.stages[0].steps = 0, 3, 6
  state, _ = train()  # without patience it goes on
  assert int(state.step) == 6 and asked[-1] == 0.7
  assert loop.checkpoint.steps(tmp_path / 'checkpoints') == [2, 6]
  assert any('best       eval/ndcg@10 0.9000 at step 2 (0.5000' in s for s in said)


@pytest.mark.thorough
def test_an_interrupt_saves_what_was_done(finished, tiny, rows, tmp_path):
  count = iter(range(9))

  def interrupt():
    if next(count) == 2:
      raise KeyboardInterrupt
    return False

  cfg = tiny_run.experiment(tiny, rows)
  cfg.checkpoint.every = 0
  with pytest.raises(KeyboardInterrupt):
    loop.train(cfg, tmp_path, log=lambda _: None, should_stop=interrupt)
  assert loop.checkpoint.steps(tmp_path / 'checkpoints') == [3]
  loop.train(tiny_run.experiment(tiny, rows), tmp_path, log=lambda _: None)
  assert tiny_run.bits(tmp_path) == tiny_run.bits(finished)


@pytest.mark.thorough
def test_a_damaged_last_checkpoint_costs_only_its_steps(
    finished, tiny, rows, tmp_path):
  shutil.copytree(finished, tmp_path / 'run')
  last = tmp_path / 'run' / 'checkpoints' / '6' / 'params'
  for file in last.glob('d/*'):
    file.write_bytes(file.read_bytes()[:-200])
  said = []
  loop.train(tiny_run.experiment(tiny, rows), tmp_path / 'run', log=said.append)
  assert any('6.unreadable' in s for s in said)
  assert any('at step 4' in s for s in said)
  assert tiny_run.bits(tmp_path / 'run') == tiny_run.bits(finished)
  assert [r['step'] for r in metrics.read(tmp_path / 'run')] == [1, 2, 3, 4, 5, 6]


@pytest.mark.thorough
def test_a_preemption_notice_saves_and_the_run_goes_on(
    finished, tiny, rows, tmp_path):
  notices = iter([False, False, True])
  said = []
  state, _ = loop.train(tiny_run.experiment(tiny, rows), tmp_path, log=said.append,
                        should_stop=lambda: next(notices, False))
  assert int(state.step) == 3
  assert any('stopped    after step 3' in s for s in said)
  loop.train(tiny_run.experiment(tiny, rows), tmp_path, log=lambda _: None)
  assert tiny_run.bits(tmp_path) == tiny_run.bits(finished)


@pytest.mark.thorough
def test_adapters_temperature_and_chunks_train_together(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows, steps=2)
  cfg.model.lora_rank = 2
  cfg.model.pooling, cfg.model.latents, cfg.model.heads = 'latent_attention', 4, 2
  cfg.stages[0].loss.learn_temperature = True
  cfg.stages[0].token_budget = 8
  cfg.stages[0].optim.warmup_steps = 0
  loop.train(cfg, tmp_path, log=lambda _: None)
  before = tables.flatten(from_hf.load(tiny).params)
  after = tiny_run.parameters(tmp_path)
  for path, value in before.items():  # the backbone beside the adapters stays
    np.testing.assert_array_equal(after[path], value, err_msg=path)
  assert np.any(after['backbone/layers/attn/q/lora_b'])
  assert np.any(after['pooling/out/kernel'])
  assert after['loss/log_scale'] != pytest.approx(np.log(20), abs=1e-6)
  assert Embedder.load(tmp_path).encode('number 3').shape == (32,)


@pytest.mark.thorough
def test_two_sources_one_with_its_own_temperature(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows, steps=3)
  first = cfg.stages[0].data.sources[0]
  cfg.stages[0].data.sources.append(
      dataclasses.replace(first, name='cold', temperature=0.01))
  told = []
  loop.train(cfg, tmp_path, log=lambda _: None,
             on_metrics=lambda step, values: told.append((step, values)))
  found = metrics.read(tmp_path)
  assert [step for step, _ in told] == [1, 2, 3]
  for record in found:  # as many rows of each, in one mixture
    mean = (record['loss_of/rows'] + record['loss_of/cold']) / 2
    assert record['train/loss'] == pytest.approx(mean, rel=1e-5)
    assert record['loss_of/rows'] != record['loss_of/cold']


@pytest.mark.thorough
@pytest.mark.parametrize('learns', [(True, False), (False, True), (True, True)])
def test_a_temperature_learned_in_some_stages_survives_a_stop_in_the_second(
    tiny, rows, tmp_path, learns):
  cfg = tiny_run.experiment(tiny, rows, steps=3)
  cfg.stages.append(dataclasses.replace(cfg.stages[0], name='second'))
  for stage, learn in zip(cfg.stages, learns):
    stage.loss = config.LossConfig(learn_temperature=learn)
  cfg.stages[1].optim = dataclasses.replace(
      cfg.stages[0].optim, keep_optimizer_state=learns[0] == learns[1])
  quiet = {'log': lambda _: None}
  loop.train(cfg, tmp_path / 'whole', **quiet)
  for stop_at in (3, 5):  # between the stages, and inside the second
    run, notices = tmp_path / f'stopped_{stop_at}', iter(range(1, 9))
    loop.train(cfg, run, **quiet,
               should_stop=lambda n=notices, at=stop_at: next(n) == at)
    state, _ = loop.train(cfg, run, **quiet)
    assert ('loss' in state.params) == learns[-1]
    assert tiny_run.bits(run) == tiny_run.bits(tmp_path / 'whole')


@pytest.mark.thorough
def test_sigkill_half_way_changes_nothing(finished, tiny, rows, tmp_path):
  """The process dies by SIGKILL once a checkpoint is there; a second goes on."""
  file, run = tmp_path / 'config.json', tmp_path / 'run'
  file.write_text(json.dumps(config.to_dict(tiny_run.experiment(tiny, rows))))
  command = [sys.executable, '-c', tiny_run.SCRIPT, str(file), str(run)]
  compiled_alike = os.environ | {'XLA_FLAGS': os.environ['TESTS_XLA_FLAGS']}
  process = subprocess.Popen(command, cwd=ROOT, env=compiled_alike,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 300
  while not (run / 'checkpoints' / '2').is_dir():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (run / 'checkpoints' / '6').exists(), 'killed too late to mean anything'
  again = subprocess.run(command, cwd=ROOT, env=compiled_alike,
                         capture_output=True, text=True, check=False)
  assert again.returncode == 0, again.stderr[-2000:]
  assert 'resumed' in again.stdout
  assert tiny_run.bits(run) == tiny_run.bits(finished)


@pytest.mark.thorough
def test_packed_batches_resume_to_the_same_bits(finished, tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].data.pack, cfg.stages[0].token_budget = 64, 64
  loop.train(cfg, tmp_path / 'whole', log=lambda _: None)
  notices = iter([False, False, True])
  loop.train(cfg, tmp_path / 'parts', log=lambda _: None,
             should_stop=lambda: next(notices, False))
  loop.train(cfg, tmp_path / 'parts', log=lambda _: None)
  assert tiny_run.bits(tmp_path / 'parts') == tiny_run.bits(tmp_path / 'whole')
  losses = [[r['train/loss'] for r in metrics.read(folder)]
            for folder in (tmp_path / 'whole', finished)]  # packed, padded
  np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.thorough
def test_a_collapse_is_told(tiny, rows, tmp_path):
  ranks, said = iter([8.0, 7.0, 1.5]), []
  cfg = tiny_run.experiment(tiny, rows)
  cfg.eval = config.EvalConfig(every=3)
  loop.train(cfg, tmp_path, log=said.append,
             evaluate=lambda *_: {'eval/effective_rank': next(ranks)})
  told = '\n'.join(said)
  assert told.count('effective rank fell from 8.0 to 1.5') == 1
  assert told.count('fell from') == 1
