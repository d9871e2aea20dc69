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

import numpy as np
import pytest

from jaxembed import config
from jaxembed.convert import from_hf, tables
from jaxembed.embedder import Embedder
from jaxembed.train import loop, metrics

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny_run  # noqa: E402


@pytest.fixture(scope='module')
def tiny(tmp_path_factory, minilm) -> pathlib.Path:
  return tiny_run.write_model(tmp_path_factory.mktemp('tiny'), minilm)


@pytest.fixture(scope='module')
def rows(tmp_path_factory) -> pathlib.Path:
  return tiny_run.write_rows(tmp_path_factory.mktemp('rows') / 'train.jsonl')


def _params_bytes(folder):
  return {k: np.asarray(v).tobytes() for k, v in tiny_run.parameters(folder).items()}


@pytest.fixture(scope='module')
def finished(tiny, rows, tmp_path_factory):
  folder = tmp_path_factory.mktemp('finished')
  loop.train(tiny_run.experiment(tiny, rows), folder, say=lambda _: None)
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
  before = _params_bytes(finished)
  said = []
  state, _ = loop.train(tiny_run.experiment(tiny, rows), finished, say=said.append)
  assert int(state.step) == 6
  assert 'nothing to train' in said[-1]
  assert _params_bytes(finished) == before


def test_another_configuration_does_not_enter_the_folder(finished, tiny, rows):
  with pytest.raises(ValueError, match='another configuration: .*steps was 6, is 7'):
    loop.train(tiny_run.experiment(tiny, rows, steps=7), finished, say=lambda _: None)


def test_a_damaged_last_checkpoint_costs_only_its_steps(
    finished, tiny, rows, tmp_path):
  shutil.copytree(finished, tmp_path / 'run')
  last = tmp_path / 'run' / 'checkpoints' / '6' / 'params'
  for file in last.glob('d/*'):
    file.write_bytes(file.read_bytes()[:-200])
  said = []
  loop.train(tiny_run.experiment(tiny, rows), tmp_path / 'run', say=said.append)
  assert any('6.unreadable' in s for s in said)
  assert any('at step 4' in s for s in said)
  assert _params_bytes(tmp_path / 'run') == _params_bytes(finished)
  assert [r['step'] for r in metrics.read(tmp_path / 'run')] == [1, 2, 3, 4, 5, 6]


def test_batch_that_does_not_divide_the_mesh(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].data.batch_size = 12
  with pytest.raises(ValueError, match=r'batch_size=12 .* 8 devices .*; use 8 or 16'):
    loop.train(cfg, tmp_path / 'run', say=lambda _: None)
  assert not (tmp_path / 'run').exists()


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows, clip_norm=0.0)
  cfg.stages[0].optim.peak_lr = 1e30
  with pytest.raises(FloatingPointError, match='at step .*peak_lr'):
    loop.train(cfg, tmp_path, say=lambda _: None)
  assert not [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]


def test_a_preemption_notice_saves_and_the_run_goes_on(
    finished, tiny, rows, tmp_path):
  notices = iter([False, False, True])
  said = []
  state, _ = loop.train(tiny_run.experiment(tiny, rows), tmp_path, say=said.append,
                        stop=lambda: next(notices, False))
  assert int(state.step) == 3
  assert any('stopped    after step 3' in s for s in said)
  loop.train(tiny_run.experiment(tiny, rows), tmp_path, say=lambda _: None)
  assert _params_bytes(tmp_path) == _params_bytes(finished)


def test_adapters_temperature_and_chunks_train_together(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows, steps=2)
  cfg.model.lora_rank = 2
  cfg.model.pooling, cfg.model.latents, cfg.model.heads = 'latent_attention', 4, 2
  cfg.stages[0].loss.learn_temperature = True
  cfg.stages[0].token_budget = 8
  cfg.stages[0].optim.warmup_steps = 0
  loop.train(cfg, tmp_path, say=lambda _: None)
  before = tables.flatten(from_hf.load(tiny).params)
  after = tiny_run.parameters(tmp_path)
  for path, value in before.items():  # the backbone beside the adapters stays
    np.testing.assert_array_equal(after[path], value, err_msg=path)
  assert np.any(after['backbone/layers/attn/q/lora_b'])
  assert np.any(after['pooling/out/kernel'])
  assert after['loss/log_scale'] != pytest.approx(np.log(20), abs=1e-6)
  assert Embedder.load(tmp_path).encode('number 3').shape == (32,)


def test_two_sources_one_with_its_own_temperature(tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows, steps=3)
  first = cfg.stages[0].data.sources[0]
  cfg.stages[0].data.sources.append(
      dataclasses.replace(first, name='cold', temperature=0.01))
  told = []
  loop.train(cfg, tmp_path, say=lambda _: None,
             watch=lambda step, values: told.append((step, values)))
  found = metrics.read(tmp_path)
  assert [step for step, _ in told] == [1, 2, 3]
  for record in found:  # as many rows of each, in one mixture
    mean = (record['loss_of/rows'] + record['loss_of/cold']) / 2
    assert record['train/loss'] == pytest.approx(mean, rel=1e-5)
    assert record['loss_of/rows'] != record['loss_of/cold']


@pytest.mark.parametrize('learns', [
    (True, False), pytest.param((False, True), marks=pytest.mark.slow),
    pytest.param((True, True), marks=pytest.mark.slow)])
def test_a_temperature_learned_in_some_stages_survives_a_stop_in_the_second(
    tiny, rows, tmp_path, learns):
  cfg = tiny_run.experiment(tiny, rows, steps=3)
  cfg.stages.append(dataclasses.replace(cfg.stages[0], name='second'))
  for stage, learn in zip(cfg.stages, learns):
    stage.loss = config.LossConfig(learn_temperature=learn)
  cfg.stages[1].optim = dataclasses.replace(
      cfg.stages[0].optim, keep_optimizer_state=learns[0] == learns[1])
  quiet = {'say': lambda _: None}
  loop.train(cfg, tmp_path / 'whole', **quiet)
  for stop_at in (3, 5):  # between the stages, and inside the second
    run, notices = tmp_path / f'stopped_{stop_at}', iter(range(1, 9))
    loop.train(cfg, run, **quiet, stop=lambda n=notices, at=stop_at: next(n) == at)
    state, _ = loop.train(cfg, run, **quiet)
    assert ('loss' in state.params) == learns[-1]
    assert _params_bytes(run) == _params_bytes(tmp_path / 'whole')


def test_sigkill_half_way_changes_nothing(finished, tiny, rows, tmp_path):
  """The process dies by SIGKILL once a checkpoint is there; a second goes on."""
  file, run = tmp_path / 'config.json', tmp_path / 'run'
  file.write_text(json.dumps(config.to_dict(tiny_run.experiment(tiny, rows))))
  command = [sys.executable, '-c', tiny_run.SCRIPT, str(file), str(run)]
  process = subprocess.Popen(command, cwd=ROOT, env=os.environ,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 300
  while not (run / 'checkpoints' / '2').is_dir():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (run / 'checkpoints' / '6').exists(), 'killed too late to mean anything'
  again = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True,
                         text=True, check=False)
  assert again.returncode == 0, again.stderr[-2000:]
  assert 'resumed' in again.stdout
  assert _params_bytes(run) == _params_bytes(finished)


def test_packed_batches_resume_to_the_same_bits(finished, tiny, rows, tmp_path):
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].data.pack, cfg.stages[0].token_budget = 64, 64
  loop.train(cfg, tmp_path / 'whole', say=lambda _: None)
  notices = iter([False, False, True])
  loop.train(cfg, tmp_path / 'parts', say=lambda _: None,
             stop=lambda: next(notices, False))
  loop.train(cfg, tmp_path / 'parts', say=lambda _: None)
  assert _params_bytes(tmp_path / 'parts') == _params_bytes(tmp_path / 'whole')
  losses = [[r['train/loss'] for r in metrics.read(folder)]
            for folder in (tmp_path / 'whole', finished)]  # packed, padded
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_collapse_is_told(tiny, rows, tmp_path, capsys):
  ranks = iter([8.0, 7.0, 1.5])
  cfg = tiny_run.experiment(tiny, rows)
  cfg.eval = config.EvalConfig(every=3)
  loop.train(cfg, tmp_path, say=lambda _: None,
             evaluate=lambda *_: {'eval/effective_rank': next(ranks)})
  told = ''.join(capsys.readouterr())
  assert told.count('effective rank fell from 8.0 to 1.5') == 1
  assert told.count('fell from') == 1


@pytest.mark.parametrize('change,message', [
    ({'pooling': 'layer_attention'}, 'layer_attention.*pack=0'),
    ({'append_token': '[NONE]'}, r"no token '\[NONE\]'"),
    ({'append_token': '[SEP]', 'eos_text': '[SEP]'}, 'leave one out')])
def test_what_cannot_be_trained_is_refused_first(tiny, rows, tmp_path, change, message):
  cfg = tiny_run.experiment(tiny, rows)
  cfg.stages[0].data.pack = 64
  cfg.model = dataclasses.replace(cfg.model, **change)
  with pytest.raises(ValueError, match=message):
    loop.train(cfg, tmp_path, say=lambda _: None)
  assert not (tmp_path / 'checkpoints').exists() or not [
      p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
