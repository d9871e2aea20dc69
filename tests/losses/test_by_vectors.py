"""Losses by a teacher's vectors, mixed negatives and weights that follow the steps:
float64 loops, sentence-transformers, any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxembed import config, losses, sharding
from jaxembed.models import encoder
from jaxembed.train import step
from tests.helpers import tiny_step, vector_loops
from tests.helpers.score_loops import value_and_slopes
from tests.helpers.tiers import thorough
from tests.helpers.vector_loops import taught

SEED, PROGRESS = np.uint32(7), np.float32(0.9)


def compiled(cfg, params=None):
  loss = losses.named(cfg)

  def run(q, p, pair):
    pair = dataclasses.replace(pair, seed=SEED, progress=PROGRESS)
    out = loss(q, p, pair, cfg, params or {})
    return out.value, out
  return jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))


def tangent(grads, q, p):
  """Gradients of vectors of length 1 less what would change their lengths."""
  return [g - (g * x).sum(1, keepdims=True) * x for g, x in zip(grads, (q, p))]


def assert_slopes(grads, slopes, exact=1e-5):
  for got, slope in zip(grads, slopes, strict=True):
    assert np.abs(got - slope).max() <= exact * np.abs(slope).max()


def check(cfg, loss, q, p, pair, params=None):
  """Loops, and eight devices."""
  want, *slopes = value_and_slopes(loss, q, p)
  run = compiled(cfg, params)
  (value, _), grads = run(q, p, pair)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert_slopes(tangent(grads, q, p), slopes)
  mesh = sharding.make_mesh((4, 2, 1))
  with jax.set_mesh(mesh):
    (split, _), parts = run(*sharding.to_global(mesh, (q, p, pair)))
  np.testing.assert_allclose(split, value, rtol=2e-6)
  assert_slopes(parts, grads)


@pytest.mark.parametrize('fields', [{}, thorough({'same_group': True})], ids=str)
def test_kl_over_in_batch_candidates_equals_loops(fields):
  q, p, pair = taught()
  cfg = config.LossConfig(name='distill_batch', temperature=0.1,
                          teacher_temperature=0.2, **fields)
  check(cfg, lambda q, p: vector_loops.distill_batch(q, p, pair, cfg), q, p, pair)
  same = dataclasses.replace(pair, query_teacher=q, passage_teacher=p)
  one = dataclasses.replace(cfg, teacher_temperature=0.1)
  (value, _), grads = compiled(one)(q, p, same)  # the model is its own teacher
  assert abs(value) < 1e-5 and all(np.abs(g).max() < 1e-5 for g in grads)


@pytest.mark.parametrize('distance', ['cosine', thorough('mse'), thorough('l2')])
def test_embedding_matching_equals_loops(distance):
  q, p, pair = taught()
  cfg = config.LossConfig(name='embed_match', options=(
      ('distance', distance), ('teacher_width', 12)))
  rng = np.random.default_rng(1)
  projection = {'kernel': np.float32(rng.normal(size=(32, 12))),
                'bias': np.float32(rng.normal(size=12))}
  kernel, bias = (torch.tensor(np.float64(x)) for x in projection.values())
  check(cfg, lambda q, p: vector_loops.embed_match(q, p, pair, distance, kernel, bias),
        q, p, pair, {'projection': projection})


@pytest.mark.thorough
@pytest.mark.parametrize('distance', ['cosine', 'mse', 'l2'])
def test_embedding_matching_equals_embed_distill_loss(distance):
  """Vectors of any length, the projection's gradient too; MSELoss is 'mse'."""
  from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
  q, p, pair = taught(missing=0, negatives=1)
  pair = dataclasses.replace(pair, owner=np.repeat(np.arange(16, dtype=np.int32), 2))
  q, p = q * 1.7, p * 0.6
  cfg = config.LossConfig(name='embed_match', options=(
      ('distance', distance), ('teacher_width', 12)))
  params = losses.LOSSES['embed_match'].init(
      losses.LOSSES['embed_match'].resolved(cfg), 32, jax.random.key(0))
  (value, grads) = jax.value_and_grad(
      lambda q, p, params: losses.named(cfg)(q, p, pair, cfg, params).value,
      (0, 1, 2))(q, p, params)
  theirs = EmbedDistillLoss(None, distance_metric=distance)
  theirs.projection = torch.nn.Linear(32, 12).double()
  kernel, bias = (np.asarray(x) for x in (
      params['projection']['kernel'], params['projection']['bias']))
  theirs.projection.weight.data = torch.tensor(np.float64(kernel.T))
  theirs.projection.bias.data = torch.tensor(np.float64(bias))
  columns = [torch.tensor(np.float64(x), requires_grad=True)
             for x in (q, p[::2], p[1::2])]
  want = theirs.compute_loss_from_embeddings(columns, [torch.tensor(np.float64(x)) for
      x in (pair.query_teacher, pair.passage_teacher[::2], pair.passage_teacher[1::2])])
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  assert_slopes((grads[0], grads[1][::2], grads[1][1::2],
                 grads[2]['projection']['kernel'].T, grads[2]['projection']['bias']),
                [x.grad.numpy() for x in columns] + [
                    theirs.projection.weight.grad.numpy(),
                    theirs.projection.bias.grad.numpy()])


@pytest.mark.parametrize('guide, fields', [
    ('absolute', {'terms': ('qd', 'qq', 'dd', 'dq')}),
    thorough('relative', {'negatives': 'own'}), thorough('relative', {})], ids=str)
def test_a_guide_leaves_out_what_the_teacher_puts_near(guide, fields):
  q, p, pair = taught(near=1.0)
  cfg = config.LossConfig(temperature=0.3, impl='blockwise', tile_bytes=4096, options=(
      ('guide', guide), ('guide_margin', 0.1)), **fields)

  def limit(s):
    return s - 0.1 if guide == 'absolute' else s - 0.1 * abs(s)

  check(cfg, lambda q, p: vector_loops.info_nce(
      q, p, pair, cfg, guide=limit).mean(), q, p, pair)
  (value, out), _ = compiled(cfg)(q, p, pair)
  bare = dataclasses.replace(cfg, options=())
  (other, more), _ = compiled(bare)(q, p, pair)
  assert value < other and out.metrics['loss/kept_negatives'] < more.metrics[
      'loss/kept_negatives']
  whole = dataclasses.replace(cfg, impl='reference')
  np.testing.assert_allclose(compiled(whole)(q, p, pair)[0][0], value, rtol=1e-5)


@pytest.mark.parametrize('strategy', ['absolute', 'relative'])
@pytest.mark.parametrize('margin', [0.0, 0.1])
def test_equals_gist_embed_loss(monkeypatch, strategy, margin):
  from sentence_transformers.sentence_transformer.losses import gist_embed
  q, p, pair = taught(missing=0, negatives=1, near=1.0)
  count = np.arange(32, dtype=np.int32)
  pair = dataclasses.replace(
      pair, owner=count // 2, is_positive=count % 2 == 0, passage_id=count,
      query_id=count[:16] + 1000, in_batch=np.ones(16, bool))
  cfg = config.LossConfig(temperature=0.2, terms=('qd', 'qq', 'dd'), options=(
      ('guide', strategy), ('guide_margin', margin)))
  (value, _), grads = compiled(cfg)(q, p, pair)
  theirs = gist_embed.GISTEmbedLoss.__new__(gist_embed.GISTEmbedLoss)
  torch.nn.Module.__init__(theirs)
  vars(theirs).update(
      model='ours', guide='theirs', temperature=0.2, margin=margin,
      similarity_fct=torch.nn.CosineSimilarity(dim=-1), must_retokenize=False,
      margin_strategy=strategy, contrast_anchors=True, contrast_positives=True,
      gather_across_devices=False)
  theirs.cross_entropy_loss = torch.nn.CrossEntropyLoss()
  columns = [torch.tensor(np.float64(x), requires_grad=True)
             for x in (q, p[::2], p[1::2])]
  guides = [torch.tensor(np.float64(x)) for x in (
      pair.query_teacher, pair.passage_teacher[::2], pair.passage_teacher[1::2])]
  monkeypatch.setattr(gist_embed, 'embed_columns', lambda model, _: (
      list(columns) if model == 'ours' else guides))
  want = theirs([{}, {}, {}], None)
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  slopes = columns[0].grad.numpy(), np.stack(
      [c.grad.numpy() for c in columns[1:]], 1).reshape(p.shape)
  assert_slopes(tangent(grads, q, p), slopes)


@pytest.mark.thorough
@pytest.mark.parametrize('fields', [{}, thorough({'negatives': 'own'})], ids=str)
def test_mixed_negatives_equal_loops(monkeypatch, fields):
  """One of all, and two of two halves where every row has two hard negatives."""
  q, p, pair = taught(missing=0, negatives=2)
  cfg = config.LossConfig(temperature=0.2, options=(('mix_list', True),), **fields)
  check(cfg, lambda q, p: vector_loops.info_nce(
      q, p, pair, cfg, mix_list=True).mean(), q, p, pair)
  monkeypatch.setattr(jax.random, 'beta', lambda key, a, b, shape: jnp.full(shape, .5))
  cfg = dataclasses.replace(cfg, options=(('mix_pairs', 2),))
  check(cfg, lambda q, p: vector_loops.info_nce(
      q, p, pair, cfg, halves=2).mean(), q, p, pair)


@pytest.mark.thorough
def test_what_is_no_negative_is_never_mixed_and_draws_differ():
  q, p, pair = taught(missing=0)
  cfg = config.LossConfig(temperature=0.2, options=(('mix_pairs', 4),
                                                    ('mix_list', True)))
  loss = losses.named(cfg)
  run = jax.jit(lambda p, pair, seed: loss(
      q, p, dataclasses.replace(pair, seed=seed), cfg, {}))
  positive = {int(pair.owner[c]): c for c in range(len(p)) if pair.is_positive[c]}
  hard = np.flatnonzero((pair.owner == 4) & ~pair.is_positive)[0]
  known = pair.passage_id.copy()
  known[hard] = known[positive[4]]  # the positive's text
  pair = dataclasses.replace(pair, passage_id=known,
                             in_batch=pair.in_batch & (pair.owner[hard] != 4))
  out = run(p, pair, SEED)
  other = np.where(np.arange(len(p))[:, None] == hard, -p, p)
  np.testing.assert_allclose(run(other, pair, SEED).per_query[4], out.per_query[4],
                             rtol=1e-6)
  assert 0 <= out.metrics['loss/mixed_above_positive'] <= 1
  assert run(p, pair, SEED).value == out.value != run(p, pair, SEED + 1).value


@pytest.mark.thorough
@pytest.mark.parametrize('progress', [0.3, thorough(0.9)])
def test_weights_follow_the_steps(progress):
  q, p, pair = taught(missing=0)
  cfg = config.LossConfig(temperature=0.2, focal_gamma=0.8, options=(
      ('focal_schedule', 'linear'), ('drop_hardest', 0.25)))
  out = losses.named(cfg)(q, p, dataclasses.replace(
      pair, progress=np.float32(progress)), cfg, {})
  plain = dataclasses.replace(cfg, options=(), focal_gamma=0.0)
  rows = vector_loops.info_nce(
      *(torch.tensor(np.float64(x)) for x in (q, p)), pair, plain).numpy()
  rows = rows * (1 - np.exp(-rows))**(0.8 * progress)
  dropped = (rows > np.quantile(rows, 0.75)) & (progress > 0.8)
  np.testing.assert_allclose(out.value, np.where(dropped, 0, rows).mean(), rtol=1e-5)
  assert out.metrics['loss/dropped_rows'] == dropped.sum() == 4 * (progress > 0.8)


@pytest.mark.parametrize('options, message', [
    ((('guide', 'both'),), "guide is 'both'; give '', 'absolute'"),
    ((('guide_margin', -1.0),), 'guide_margin is -1.0'),
    ((('mix_pairs', -1),), 'mix_pairs is -1'), ((('mix_list', 2),), 'True or False'),
    ((('drop_hardest', 1.0),), 'drop_hardest is 1.0'),
    ((('focal_schedule', 'cosine'),), "focal_schedule is 'cosine'")], ids=str)
def test_options_that_mean_nothing_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    losses.named(config.LossConfig(options=options))


def test_what_is_missing_or_does_not_fit_is_refused():
  q, p, pair = taught()
  bare = dataclasses.replace(pair, query_teacher=None, passage_teacher=None)
  for cfg in (config.LossConfig(name='distill_batch'),
              config.LossConfig(name='embed_match'),
              config.LossConfig(options=(('guide', 'absolute'),))):
    with pytest.raises(ValueError, match='reads the vectors of a teacher'):
      losses.named(cfg)(q, p, bare, cfg, {})
  cfg = config.LossConfig(name='embed_match')
  with pytest.raises(ValueError, match=r"12 wide.*32.*\('teacher_width', 12\)"):
    losses.named(cfg)(q, p, pair, cfg, {})
  endless = pair.passage_teacher.copy()
  endless[3, 3] = np.inf
  with pytest.raises(ValueError, match='passage_teacher has infinite'):
    losses.named(cfg)(q, p, dataclasses.replace(pair, passage_teacher=endless), cfg, {})
  for options in ((('mix_pairs', 1),), (('drop_hardest', 0.1),)):
    cfg = config.LossConfig(options=options)
    with pytest.raises(ValueError, match=r'pairing.(seed|progress) is None'):
      losses.named(cfg)(q, p, pair, cfg, {})


def test_parameters_of_a_loss_go_on_where_the_next_stage_has_them():
  model, match = tiny_step.model(), losses.LOSSES['embed_match']
  loss = config.LossConfig(name='embed_match', options=(('teacher_width', 12),))
  stage = dataclasses.replace(tiny_step.STAGE, loss=loss)
  shapes = encoder.param_shapes(model)

  def begun(stage, before, **more):
    return step.init_state(before, stage, **more).params.get('loss', {})

  want = match.init(match.resolved(loss), model.embedding_dim, jax.random.key(3))
  drawn = jax.eval_shape(lambda p: begun(stage, p, model=model), shapes)
  assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, want)
  with jax.set_mesh(tiny_step.mesh((1, 1, 1))):
    params = encoder.init_params(model, jax.random.key(1))
    first = begun(stage, params, model=model, seed=3)
    after = begun(stage, params | {'loss': jax.tree.map(lambda x: x + 1, first)},
                  model=model)
    for x, y, z in zip(*map(jax.tree.leaves, (want, first, after)), strict=True):
      np.testing.assert_array_equal(x, y)
      np.testing.assert_array_equal(x + 1, z)
    assert not begun(tiny_step.STAGE, params | {'loss': first})
    wider = dataclasses.replace(stage, loss=dataclasses.replace(
        loss, options=(('teacher_width', 13),)))
    assert begun(wider, params | {'loss': first}, model=model)[
        'projection']['bias'].shape == (13,)
    with pytest.raises(ValueError, match='give init_state the model'):
      step.init_state(params, stage)


@pytest.mark.thorough
@pytest.mark.parametrize('loss', [
    config.LossConfig(name='embed_match', options=(('teacher_width', 12),)),
    config.LossConfig(name='distill_batch', teacher_temperature=0.1),
    config.LossConfig(options=(
        ('guide', 'absolute'), ('mix_pairs', 2), ('mix_list', True)))],
    ids=('match', 'batch', 'guide and mix'))
def test_steps_learn_in_one_piece_and_in_chunks(loss):
  """GradCache, on four devices; adapters alone, of padded and of packed rows."""
  model, (batch,) = tiny_step.model(), tiny_step.batches(1, negatives=3)
  rng = np.random.default_rng(0)
  pair = dataclasses.replace(batch.pairing, **{
      f'{side}_teacher': rng.normal(size=(n, 12)).astype(np.float32)
      for side, n in (('query', 16), ('passage', 64))})
  batch, curves = dataclasses.replace(batch, pairing=pair), []
  for shape, budget in (((1, 1, 1), 0), ((2, 2, 1), 48)):
    stage = dataclasses.replace(tiny_step.STAGE, loss=loss, token_budget=budget)
    curves.append(tiny_step.curve(model, stage, shape, [batch] * 6)[0])
  np.testing.assert_allclose(curves[1], curves[0], rtol=2e-4)
  assert curves[0][-1] < curves[0][0]
  adapted = dataclasses.replace(model, lora=config.LoraConfig(rank=2))
  stage = dataclasses.replace(tiny_step.STAGE, loss=loss)
  padded, states = zip(*(
      tiny_step.curve(adapted, stage, (2, 2, 1), [form] * 6)
      for form in (batch, tiny_step.packed(batch, 4, 48))))
  np.testing.assert_allclose(padded[1], padded[0], rtol=2e-4)
  assert padded[0][-1] < padded[0][0] and states[0].params['backbone']
