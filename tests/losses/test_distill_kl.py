"""KL to a teacher's scores: against loops, sentence-transformers, any mesh, a step."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch

from jaxembed import config, data, losses, sharding
from jaxembed.models import encoder
from jaxembed.train import step
from tests.helpers import tiny_step
from tests.helpers.score_loops import scored

CFG = config.LossConfig(name='distill_kl', temperature=0.05, teacher_temperature=2.0)


def oracle(q, p, pair, cfg, temperature):
  q, p, rows = np.float64(q), np.float64(p), []
  for i in range(len(q)):
    mine = [c for c in range(len(p)) if pair.owner[c] == i
            and not np.isnan(pair.score[c])]
    if len(mine) > 1:
      t = np.exp(np.float64(pair.score[mine]) / cfg.teacher_temperature)
      s = np.exp(p[mine] @ q[i] / temperature[i])
      t, s = t / t.sum(), s / s.sum()
      rows.append((t * np.log(t / s)).sum())
  return np.mean(rows)


@pytest.mark.parametrize('own', [False, True])
def test_equals_loops_on_any_mesh(own):
  q, p, pair = scored()
  temperature = np.full(16, CFG.temperature)
  if own:
    temperature = np.where(pair.group == 1, 0.3, temperature)
    pair = dataclasses.replace(pair, temperature=np.float32(
        np.where(pair.group == 1, 0.3, 0)))
  run = jax.jit(jax.value_and_grad(lambda q, p, pair: losses.LOSSES['distill_kl'](
      q, p, pair, CFG, {}).value, (0, 1)))
  want = oracle(q, p, pair, CFG, temperature)
  value, grads = run(q, p, pair)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  rng, eps = np.random.default_rng(1), 1e-5
  dq, dp = rng.normal(size=q.shape), rng.normal(size=p.shape)
  up, down = (oracle(q + e * dq, p + e * dp, pair, CFG, temperature)
              for e in (eps, -eps))
  np.testing.assert_allclose(np.vdot(grads[0], dq) + np.vdot(grads[1], dp),
                             (up - down) / (2 * eps), rtol=1e-4)
  mesh = sharding.make_mesh((2, 2, 1), jax.devices()[:4])
  with jax.set_mesh(mesh):
    split, parts = run(*sharding.to_global(mesh, (q, p, pair)))
  np.testing.assert_allclose(split, value, rtol=1e-6)
  for got, ref in zip(parts, grads, strict=True):
    assert np.linalg.norm(got - ref) <= 1e-6 * np.linalg.norm(ref)


@pytest.mark.thorough
def test_equals_sentence_transformers():
  from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
  q, p, pair = scored(missing=0)
  pair = dataclasses.replace(pair, owner=np.repeat(np.arange(16, dtype=np.int32), 4))
  theirs = DistillKLDivLoss(None, student_temperature=0.05, teacher_temperature=2.0)
  a, b = (torch.tensor(x, requires_grad=True) for x in (q, p))
  want = theirs.compute_loss_from_embeddings(
      [a, *b.reshape(16, 4, -1).unbind(1)], torch.tensor(pair.score).reshape(16, 4))
  want.backward()
  value, grads = jax.value_and_grad(lambda q, p: losses.LOSSES['distill_kl'](
      q, p, pair, CFG, {}).value, (0, 1))(q, p)
  np.testing.assert_allclose(value * 0.05**2, want.item(), rtol=1e-5)
  for got, slope in zip(grads, (a.grad, b.grad), strict=True):
    np.testing.assert_allclose(got * 0.05**2, slope, atol=1e-5 * slope.abs().max())


@pytest.mark.thorough
def test_a_step_learns_the_teachers_order():
  """In one piece and in chunks (GradCache), on one device and on four."""
  model, (batch,) = tiny_step.model(), tiny_step.batches(1, negatives=3)
  score = np.random.default_rng(0).normal(size=64).astype(np.float32)
  batch = dataclasses.replace(
      batch, pairing=dataclasses.replace(batch.pairing, score=score))
  curves = []
  for shape, budget in (((1, 1, 1), 0), ((2, 2, 1), 48)):
    stage = dataclasses.replace(tiny_step.STAGE, loss=CFG, token_budget=budget)
    curves.append(tiny_step.curve(model, stage, shape, [batch] * 6)[0])
  np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
  assert curves[0][-1] < 0.9 * curves[0][0]


def test_scores_of_any_size_are_compared_by_their_differences():
  """What float32 holds of a teacher's scores is not lost in their sums."""
  q, p, pair = scored()
  whole = np.round(pair.score)

  def value(score):
    moved = dataclasses.replace(pair, score=np.float32(score))
    return losses.LOSSES['distill_kl'](q, p, moved, CFG, {}).value

  want = oracle(q, p, dataclasses.replace(pair, score=whole), CFG, np.full(16, 0.05))
  np.testing.assert_allclose(value(whole), want, rtol=1e-5)
  np.testing.assert_allclose(value(whole + 2.0**20), want, rtol=1e-5)
  np.testing.assert_allclose(value(0 * whole + 1e30), value(0 * whole), rtol=1e-6)
  assert np.isfinite(value(1e30 * whole))


def test_rows_without_scores_are_refused_or_counted():
  q, p, pair = scored()
  with pytest.raises(ValueError, match='pairing.score is None; give rows pos_scores'):
    losses.LOSSES['distill_kl'](q, p, dataclasses.replace(pair, score=None), CFG, {})
  none = dataclasses.replace(pair, score=np.full_like(pair.score, np.nan))
  out = losses.LOSSES['distill_kl'](q, p, none, CFG, {})
  assert out.value == 0 and out.metrics['loss/rows_without_scores'] == 16
  with pytest.raises(ValueError, match='LossConfig.symmetric is True with name='):
    config.LossConfig(name='distill_kl', symmetric=True)


def test_what_is_not_finite_is_seen():
  q, p, pair = scored()
  p[np.flatnonzero((pair.owner >= 0) & ~np.isnan(pair.score))[0]] = np.nan
  out = jax.jit(lambda q, p: losses.LOSSES['distill_kl'](q, p, pair, CFG, {}))(q, p)
  assert np.isnan(out.value) and out.metrics['loss/nonfinite_rows'] == 1


def test_from_a_row_with_scores_to_a_metric(minilm, tmp_path):
  """FlagEmbedding's form; row i scores its passages 10i, 10i + 1, ..."""
  lines = [{'query': f'what is {i}', 'pos': [f'{i} it is'],
            'neg': [f'{i} not {j}' for j in range(1 + i % 2)], 'pos_scores': [10.0 * i],
            'neg_scores': [10.0 * i + 1 + j for j in range(1 + i % 2)]}
           for i in range(8)]
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)))
  source = config.SourceConfig(name='a', path=str(path))
  stage = config.StageConfig(loss=CFG, data=config.DataConfig(
      sources=[source], batch_size=8, num_negatives=2, query_lengths=(8,),
      passage_lengths=(8,), prefetch=0))
  batch, _ = next(data.batches(stage.data, data.Tokenizer.load(minilm), seed=0))
  model = dataclasses.replace(tiny_step.model(), backbone=dataclasses.replace(
      tiny_step.model().backbone, vocab_size=30522))
  params = encoder.init_params(model, jax.random.key(0))
  pair = batch.pairing
  _, metrics = jax.jit(lambda params: step.loss_and_metrics(
      params, batch, model, stage, jax.random.key(0)))(params)
  q, p = (np.asarray(jax.jit(encoder.encode, static_argnums=1)(params, model, x))
          for x in (batch.query, batch.passage))
  np.testing.assert_allclose(metrics['loss/distill_kl'], oracle(
      q, p, pair, CFG, np.full(8, CFG.temperature)), rtol=1e-4)
  by_row = {tuple(sorted(s for s in pair.score[pair.owner == i] if not np.isnan(s)))
            for i in range(8)}
  assert by_row == {(*x['pos_scores'], *x['neg_scores']) for x in lines}
