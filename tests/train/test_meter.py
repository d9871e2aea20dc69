"""What is recorded between records: means per source, shares of a chip's peak."""

import sys
import time
import types as python_types

import jax.numpy as jnp
import numpy as np
import pytest
import tqdm

from jaxembed import config, types
from jaxembed.train import chips, cost, loop, meter
from launch import train, wandb_log


class _Records(list):

  def write(self, step, values):
    self.append((step, values))


def _batch(rows=4, length=6):
  tokens = types.Tokens(*(np.ones((rows, length), bool),) * 3)
  return types.PairBatch(tokens, tokens, python_types.SimpleNamespace(
      query_id=np.arange(rows), owner=np.arange(rows)))


def _values(loss, rows):
  rows = jnp.array(rows, jnp.float32)
  return {'train/loss': jnp.float32(1), 'sources/rows': rows,
          'sources/loss': jnp.array(loss, jnp.float32) * rows}


def test_losses_of_sources_are_means_over_the_rows_since_the_last_record():
  records = _Records()
  seen = meter.Meter(records, tqdm.tqdm(disable=True), every=3, last=6,
                     sources=['a', 'b', 'c'], flops=lambda _: 0)
  given = [([1, 2, 0], [4, 0, 0]), ([3, 5, 0], [1, 3, 0]), ([1, 1, 0], [3, 1, 0])]
  for now, (loss, rows) in enumerate(given, 1):
    seen.read(now, _values(loss, rows), _batch())
  seen.flush()
  assert [step for step, _ in records] == [1, 3]
  first, second = (r for _, r in records)
  assert first['loss_of/a'] == 1 and 'loss_of/b' not in first
  np.testing.assert_allclose(second['loss_of/a'], (3 * 1 + 1 * 3) / 4)
  np.testing.assert_allclose(second['loss_of/b'], (5 * 3 + 1 * 1) / 4)
  assert 'loss_of/c' not in second and 'train/mfu' not in second


def test_rows_that_are_told_apart_from_nothing_are_told_once(monkeypatch):
  bar, told = tqdm.tqdm(disable=True), []
  monkeypatch.setattr(bar, 'write', told.append, raising=False)
  seen = meter.Meter(_Records(), bar, every=1, last=9, sources=['a'],
                     flops=lambda _: 0)
  for now, share in enumerate((0.25, 0.75, 1.0), 1):
    seen.read(now, _values([1], [4]) | {
        'loss/rows_without_negatives': jnp.float32(share)}, _batch())
  seen.flush()
  assert len(told) == 1 and 'step 2: 75% of the rows have no negative' in told[0]


def test_texts_that_were_cut_are_counted_and_updates_left_out():
  records = _Records()
  seen = meter.Meter(records, tqdm.tqdm(disable=True), every=2, last=9, sources=['a'],
                     flops=lambda _: 0, parts=2.0, max_skipped=1)
  counts = {'truncated_queries': 1, 'truncated_passages': 3}
  bad = {'train/skipped': jnp.float32(1), 'train/grad_norm': jnp.float32(np.inf)}
  for now, more in enumerate(({}, {}, bad, {}), 1):
    seen.read(now, _values([1], [4]) | more, _batch(), counts)
  seen.flush()
  assert [r['train/skipped'] for _, r in records] == [0, 0, 1]
  assert [r['data/truncated_passages'] for _, r in records] == [6, 6, 12]
  assert seen.totals == {'queries': 32, 'passages': 32, 'truncated_queries': 8,
                         'truncated_passages': 24}
  assert seen.last_good == 4
  seen.read(5, _values([1], [4]) | bad, _batch())
  seen.read(6, _values([1], [4]) | bad, _batch())
  with pytest.raises(FloatingPointError, match='2 updates in a row .*max_skipped=1'):
    seen.flush()


def test_mfu_is_work_over_time_over_peak(monkeypatch):
  clock = iter([0.0, 2.0, 2.0])
  monkeypatch.setattr(time, 'perf_counter', lambda: next(clock))
  records = _Records()
  seen = meter.Meter(records, tqdm.tqdm(disable=True), every=1, last=1, sources=['a'],
                     flops=lambda batch: batch.query.ids.size * 10.0, peak=1000.0)
  seen.read(1, _values([1], [4]), _batch())
  seen.flush()
  assert records[0][1]['train/mfu'] == pytest.approx(240 / 2 / 1000)


@pytest.mark.parametrize('kind, name', [
    ('TPU v5 lite', 'v5e'), ('TPU v5e', 'v5e'), ('TPU v5', 'v5p'), ('TPU v5p', 'v5p'),
    ('TPU v6 lite', 'v6e'), ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H200', 'h200'), ('cpu', None), ('NVIDIA H100 PCIe', None),
    ('TPU v4', None)])
def test_chips_go_by_the_names_jax_gives_them(kind, name):
  assert chips.from_device_kind(kind) == (chips.CHIPS[name] if name else None)


def test_work_is_counted_once_however_often_it_is_done():
  model = config.ModelConfig(backbone=loop.start.presets.tiny('mistral'))
  stage = config.StageConfig(data=config.DataConfig(
      batch_size=4, query_lengths=(6,), passage_lengths=(6,)))
  chunked = config.StageConfig(data=stage.data, token_budget=6)
  work = cost.model_flops(model, _batch())
  assert work == cost.step_flops(model, stage) < cost.step_flops(model, chunked)


def test_profile_steps_are_two_numbers():
  assert train._steps('20:25') == (20, 25)
  assert train._steps(None) is None
  for text in ('5', '9:3', 'a:b'):
    with pytest.raises(ValueError, match='profile_steps'):
      train._steps(text)


def test_weights_and_biases_is_optional(monkeypatch, tmp_path):
  cfg = config.Config(name='run', model=config.ModelSpec(preset='x'))
  assert wandb_log.on_metrics(None, cfg, str(tmp_path)) is None
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match=r'pip install .jaxembed\[wandb\]'):
    wandb_log.on_metrics('p', cfg, str(tmp_path))
  logged, opened = [], []
  fake = python_types.SimpleNamespace(
      init=lambda **kw: opened.append(kw) or python_types.SimpleNamespace(
          log=lambda values, step: logged.append((step, values))))
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  wandb_log.on_metrics('p', cfg, str(tmp_path))(7, {'train/loss': 0.5})
  wandb_log.on_metrics('p', cfg, str(tmp_path))
  assert logged == [(7, {'train/loss': 0.5})]
  assert opened[0]['project'] == 'p' and opened[0]['id'] == opened[1]['id']
