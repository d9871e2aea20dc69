"""Losses by a teacher's scores: float64 loops, sentence-transformers, any mesh."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from jaxembed import config, losses, sharding
from tests.helpers import score_loops, tiny_step
from tests.helpers.score_loops import scored, value_and_slopes
from tests.helpers.tiers import after, thorough

CASES = {
    'margin_mse': {'temperature': 0.2, 'teacher_temperature': 2.0},
    'pair_mse': {'temperature': 0.1},
    'distill_stable': {'temperature': 0.1, 'teacher_temperature': 3.0},
    'cosent': {}, 'angle': {},
    'distill_kl': {'teacher_temperature': 2.0}}


def compiled(cfg):
  loss = losses.named(cfg)
  return jax.jit(jax.value_and_grad(
      lambda q, p, pair: loss(q, p, pair, cfg, {}).value, (0, 1)))


def assert_slopes(grads, slopes, exact=1e-5):
  for got, slope in zip(grads, slopes, strict=True):
    assert np.abs(got - slope).max() <= exact * np.abs(slope).max()


@pytest.mark.parametrize('name', after(2, CASES))
def test_equals_loops_on_any_mesh(name):
  q, p, pair = scored()
  cfg = config.LossConfig(name=name, **CASES[name])
  want, *slopes = value_and_slopes(getattr(score_loops, name), q, p, pair, cfg)
  run = compiled(cfg)
  value, grads = run(q, p, pair)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  # Of vectors of length 1 the model's normalisation takes off what changes lengths.
  assert_slopes([g - (g * x).sum(1, keepdims=True) * x
                 for g, x in zip(grads, (q, p), strict=True)], slopes)
  mesh = sharding.make_mesh((4, 2, 1))
  with jax.set_mesh(mesh):
    split, parts = run(*sharding.to_global(mesh, (q, p, pair)))
  np.testing.assert_allclose(split, value, rtol=2e-6)
  assert_slopes(parts, grads)


@pytest.mark.parametrize('fields', [
    {'options': (('positive_first', False),)}, {'negatives': 'own'},
    thorough({'same_group': True})], ids=str)
def test_stable_distillation_takes_its_options(fields):
  q, p, pair = scored(groups=1)
  cfg = config.LossConfig(name='distill_stable', temperature=0.2, **fields)
  want, *_ = value_and_slopes(score_loops.distill_stable, q, p, pair, cfg)
  out = jax.jit(lambda q, p: losses.named(cfg)(q, p, pair, cfg, {}))(q, p)
  np.testing.assert_allclose(out.value, want, rtol=1e-5)
  assert (out.metrics['loss/kept_negatives'] == 0) == (cfg.negatives == 'own')


def test_a_teacher_that_is_certain_of_the_positive_makes_it_info_nce():
  q, p, pair = scored(missing=0)
  sure = dataclasses.replace(pair, score=np.where(pair.is_positive, 100, 0).astype(
      np.float32), passage_id=np.arange(len(p), dtype=np.int32) + 1000)
  values = []
  for name in ('distill_stable', 'info_nce'):
    cfg = config.LossConfig(name=name, temperature=0.2)
    values.append(compiled(cfg)(q, p, sure)[0])
  np.testing.assert_allclose(*values, rtol=1e-5)


def in_sentence_transformers(make, columns, labels):
  """Value and gradients of a class of theirs by the columns of a batch."""
  columns = [torch.tensor(np.float64(x), requires_grad=True) for x in columns]
  value = make.compute_loss_from_embeddings(columns, torch.tensor(np.float64(labels)))
  value.backward()
  return value.item(), [x.grad.numpy() for x in columns]


def test_equals_margin_mse_loss():
  from sentence_transformers.sentence_transformer.losses import MarginMSELoss
  q, p, pair = scored(missing=0)
  pair = dataclasses.replace(
      pair, owner=np.repeat(np.arange(16, dtype=np.int32), 4),
      is_positive=np.arange(64) % 4 == 0)
  q, p = q * 1.7, p * 0.6
  cfg = config.LossConfig(name='margin_mse', similarity='dot', temperature=1.0)
  value, grads = compiled(cfg)(q, p, pair)
  want, slopes = in_sentence_transformers(
      MarginMSELoss(None), [q, *p.reshape(16, 4, -1).transpose(1, 0, 2)],
      pair.score.reshape(16, 4))
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert_slopes(grads, (slopes[0], np.stack(slopes[1:], 1).reshape(p.shape)))


@pytest.mark.parametrize('name, theirs, width', [
    ('cosent', 'CoSENTLoss', 32), ('angle', 'AnglELoss', 33),
    thorough('angle', 'AnglELoss', 32)])
def test_equals_the_class_for_scored_pairs(name, theirs, width):
  """Vectors of any length; equal scores; one source."""
  import sentence_transformers.sentence_transformer.losses as st
  rng = np.random.default_rng(0)
  q, p = (rng.normal(size=(16, width)).astype(np.float32) for _ in 'qp')
  _, _, pair = scored(negatives=0, groups=1)
  score = np.round(rng.uniform(0, 5, 16)).astype(np.float32)
  owner = np.arange(16, dtype=np.int32)
  pair = dataclasses.replace(pair, owner=owner, score=score)
  cfg = config.LossConfig(name=name, temperature=1 / 20)
  value, grads = compiled(cfg)(q, p, pair)
  want, slopes = in_sentence_transformers(getattr(st, theirs)(None), [q, p], score)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert_slopes(grads, slopes)


def test_pair_mse_equals_cosine_similarity_loss():
  from sentence_transformers.util import pairwise_cos_sim
  q, p, pair = scored(missing=0, negatives=0)
  cfg = config.LossConfig(name='pair_mse', temperature=1.0)
  value, grads = compiled(cfg)(q, p, pair)
  a, b = (torch.tensor(np.float64(x), requires_grad=True) for x in (q, p))
  gap = pairwise_cos_sim(a[pair.owner], b) - torch.tensor(pair.score)
  want = (gap**2).mean()
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  assert_slopes([g - (g * x).sum(1, keepdims=True) * x
                 for g, x in zip(grads, (q, p))], (a.grad.numpy(), b.grad.numpy()))


def test_a_head_over_pairs_is_trained_as_torch_would(name='pair_mse'):
  """DSE's head and its own gradients, on one device and on eight."""
  q, p, pair = scored()
  cfg = config.LossConfig(name=name, teacher_temperature=2.0, options=(
      ('head', 'concat'), ('hidden', 16)))
  loss = losses.named(cfg)
  params = loss.init(loss.resolved(cfg), 32, jax.random.key(0))
  run = jax.jit(jax.value_and_grad(
      lambda q, p, params, pair: loss(q, p, pair, cfg, params).value, (0, 1, 2)))
  value, grads = run(q, p, params, pair)
  a, b, head = jax.tree.map(
      lambda x: torch.tensor(np.float64(x), requires_grad=True),
      (q, p, params['pair_head']))
  gaps = []
  for i in range(len(q)):
    own = score_loops.passages_of(pair, i)
    u, v = torch.nn.functional.normalize(a[i:i + 1], dim=1).expand(
        len(own), -1), torch.nn.functional.normalize(b[own], dim=1)
    both = torch.cat([u, v, u * v, (u - v).abs()], 1)
    z = torch.relu(both @ head['kernel'] + head['bias']) @ head['out'] + head[
        'out_bias']
    if own:
      gaps.append(((z - torch.tensor(np.float64(pair.score[own])) / 2)**2).mean())
  want = sum(gaps) / len(gaps)
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  flat = [g - (g * x).sum(1, keepdims=True) * x for g, x in zip(grads, (q, p))]
  assert_slopes([*flat, *jax.tree.leaves(grads[2])],
                [a.grad.numpy(), b.grad.numpy(),
                 *(head[k].grad.numpy() for k in sorted(head))])
  mesh = sharding.make_mesh((4, 2, 1))
  with jax.set_mesh(mesh):
    split, parts = run(*sharding.to_global(mesh, (q, p)), params,
                       sharding.to_global(mesh, pair))
  np.testing.assert_allclose(split, value, rtol=2e-6)
  for x, y in zip(*map(jax.tree.leaves, (parts, grads)), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-6)
  with pytest.raises(ValueError, match='temperature is 0.1 .*a head of its own'):
    dataclasses.replace(cfg, temperature=0.1)


@pytest.mark.parametrize('queries, width, fields', [
    (16, 32, {}), (16, 4, {'mean_weight': 0.5}),
    (16, 4, {'mean_weight': 1.0, 'above_uniform': True})], ids=str)
def test_spreading_equals_sentence_transformers(queries, width, fields):
  """GOR of queries and positives, by either product of the vectors with themselves,
  without rows that have no positive; on eight devices too."""
  from sentence_transformers.sentence_transformer.losses import (
      GlobalOrthogonalRegularizationLoss as Theirs,
  )
  q, p, pair = scored(queries=queries, width=width)
  keep = pair.owner != 3  # a row without passages
  pair = dataclasses.replace(pair, owner=np.where(keep, pair.owner, -1))
  cfg = config.LossConfig(name='gor', options=tuple(fields.items()))
  q, p = q * 1.5 + 0.9, p * 0.7 + 0.5
  value, grads = compiled(cfg)(q, p, pair)
  spots = [np.flatnonzero((pair.owner == i) & pair.is_positive)[0]
           for i in range(queries) if i != 3]
  a, b = (torch.tensor(np.float64(x), requires_grad=True) for x in (q, p))
  rows = [i for i in range(queries) if i != 3]
  theirs = Theirs(None, mean_weight=fields.get('mean_weight'), aggregation='sum')
  found = theirs.compute_loss_from_embeddings([a[rows], b[spots]])
  want = sum(found.values())
  if not fields.get('above_uniform'):  # theirs always subtracts it
    assert all(x > 1 / width for x in _second_moments(a[rows], b[spots]))
    want = want + 2 / width
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  assert_slopes(grads, (a.grad.numpy(), b.grad.numpy()))
  mesh = sharding.make_mesh((4, 2, 1))
  with jax.set_mesh(mesh):
    split, parts = compiled(cfg)(*sharding.to_global(mesh, (q, p, pair)))
  np.testing.assert_allclose(split, value, rtol=2e-6)
  assert_slopes(parts, grads)


def _second_moments(*sides):
  for x in sides:
    s = torch.nn.functional.normalize(x, dim=1)
    s = (s @ s.T).fill_diagonal_(0)
    yield (s**2).sum() / (len(x) * (len(x) - 1))


@pytest.mark.parametrize('name', CASES)
def test_scores_that_say_nothing_are_counted_and_teach_nothing(name):
  q, p, pair = scored()
  cfg = config.LossConfig(name=name)
  run = jax.jit(lambda q, p, pair: losses.named(cfg)(q, p, pair, cfg, {}))
  none = run(q, p, dataclasses.replace(pair, score=np.full_like(pair.score, np.nan)))
  assert none.value == 0 and none.metrics['loss/rows_without_scores'] == 16
  equal = run(q, p, dataclasses.replace(
      pair, score=np.where(np.isnan(pair.score), np.nan, 3).astype(np.float32)))
  assert np.isfinite(equal.value) and f'loss/{name}' in equal.metrics
  if name in ('cosent', 'angle'):  # there is no order
    assert equal.value == 0 and equal.metrics['loss/pairs_compared'] == 0
  lone = np.where(pair.is_positive, pair.score, np.nan)  # one candidate a row
  lone[np.flatnonzero(pair.is_positive)[:3]] = 1.0
  lone = run(q, p, dataclasses.replace(pair, score=lone))
  assert np.isfinite(lone.value)
  assert (lone.value == 0) == (losses.LOSSES[name].reads.scores == 2)
  # What is not finite is refused outside jit, and seen inside.
  endless = dataclasses.replace(pair, score=np.where(
      np.arange(len(p)) == np.flatnonzero(pair.owner >= 0)[0], np.inf, pair.score))
  with pytest.raises(ValueError, match='pairing.score is infinite for 1 passages'):
    losses.named(cfg)(q, p, endless, cfg, {})
  bad = np.where(np.arange(len(p))[:, None] == np.flatnonzero(
      (pair.owner >= 0) & ~np.isnan(pair.score))[0], np.float32(np.nan), p)
  seen = run(q, bad, pair)
  assert np.isnan(seen.value) and seen.metrics['loss/nonfinite_rows'] == 1


def test_a_sum_of_losses_is_the_sum_of_its_parts():
  q, p, pair = scored()
  parts = [config.LossConfig(weight=0.2, focal_gamma=0.5),
           config.LossConfig(name='distill_kl', weight=1.5, temperature=0.02),
           config.LossConfig(name='distill_stable', options=(('positive_first', False),
                                                             ))]
  cfg = dataclasses.replace(parts[0], plus=parts[1:])
  out, alone = jax.jit(lambda q, p: (
      losses.named(cfg)(q, p, pair, cfg, {}),
      [losses.LOSSES[part.name](q, p, pair, part, {}) for part in parts]))(q, p)
  want = sum(part.weight * x.value for part, x in zip(parts, alone))
  np.testing.assert_allclose(out.value, want, rtol=1e-6)
  np.testing.assert_allclose(out.per_query, sum(
      part.weight * x.per_query for part, x in zip(parts, alone)), rtol=1e-6)
  metrics = out.metrics
  assert metrics['loss/weighted_sum'] == out.value
  assert metrics['loss/distill_kl'] == alone[1].value
  assert metrics['distill_kl/accuracy@1'] == alone[1].metrics['loss/accuracy@1']
  assert metrics['loss/accuracy@1'] == alone[0].metrics['loss/accuracy@1']
  assert losses.named(cfg).reads_scores and not losses.LOSSES['info_nce'].reads_scores
  assert config.from_dict(config.LossConfig, config.to_dict(cfg)) == cfg


@pytest.mark.parametrize('fields, message', [
    ({'plus': [config.LossConfig()]}, "'info_nce' twice"),
    ({'weight': 0.0}, 'weight is 0.0'),
    ({'name': 'angle', 'similarity': 'dot'}, "similarity is 'dot'"),
    ({'name': 'cosent', 'negatives': 'own'}, 'pairs of the same source'),
    ({'name': 'distill_stable', 'margin': 0.1}, 'in the order of their scores'),
    ({'plus': [config.LossConfig(name='cosent', learn_temperature=True)]},
     'the first loss alone learns')], ids=str)
def test_what_a_loss_does_not_read_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    config.LossConfig(**fields)


@pytest.mark.thorough
@pytest.mark.parametrize('name', [n for n in CASES if n != 'distill_kl'])
def test_steps_learn_in_one_piece_in_chunks_and_packed(name):
  """GradCache and four devices, adapters, and rows that texts share."""
  model, (batch,) = tiny_step.model(), tiny_step.batches(1, negatives=3)
  score = np.random.default_rng(0).uniform(0, 1, 64).astype(np.float32)
  batch = dataclasses.replace(
      batch, pairing=dataclasses.replace(batch.pairing, score=score))
  cfg = config.LossConfig(name=name, temperature=0.3)
  curves = []
  for shape, budget, made in (
      ((1, 1, 1), 0, batch), ((2, 2, 1), 48, batch),
      ((2, 1, 1), 0, tiny_step.packed(batch, 2, 24))):
    stage = dataclasses.replace(tiny_step.STAGE, loss=cfg, token_budget=budget)
    curves.append(tiny_step.curve(model, stage, shape, [made] * 6)[0])
  for other in curves[1:]:
    np.testing.assert_allclose(other, curves[0], rtol=2e-4)
  assert curves[0][-1] < curves[0][0]
