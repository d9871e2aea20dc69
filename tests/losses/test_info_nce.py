"""The contrastive loss against loops in float64, on one device and on many."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxembed import config, losses, sharding
from tests.helpers.info_nce_loops import example, oracle
from tests.helpers.tiers import after, thorough

CASES = {
    'plain': {},
    'cold': {'temperature': 0.01},
    'symmetric': {'symmetric': True},
    'gte': {'terms': ('qd', 'qq', 'dd', 'dq')},
    'qwen3': {'terms': ('qd', 'qq', 'dd'), 'margin': 0.1},
    'margins': {'margin': -0.2, 'relative_margin': 0.5, 'symmetric': True},
    'group': {'same_group': True, 'symmetric': True},
    'own': {'negatives': 'own', 'hardness': 2.0, 'relative_margin': 0.9},
    'decoupled': {'decoupled': True},
    'focal': {'focal_gamma': 0.5},
    'hard_own': {'hardness': 5.0},
    'hard_shared': {'hardness': 3.0, 'hardness_on': 'shared', 'symmetric': True},
    'hard_all': {'hardness': 3.0, 'hardness_on': 'all', 'terms': ('qd', 'qq')},
    'bounded': {'bounded': True, 'symmetric': True, 'relative_margin': 0.95},
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('impl', ['blockwise', thorough('reference')])
def test_equals_loops(name, impl):
  q, p, pair = example()
  cfg = config.LossConfig(impl=impl, tile_bytes=4096, **CASES[name])
  loss, metrics = losses.info_nce(q, p, pair, cfg)
  # float32 logits of up to 100 carry 1e-5 of absolute error.
  np.testing.assert_allclose(loss, oracle(q, p, pair, cfg), rtol=2e-6, atol=2e-6)
  assert metrics['loss/nonfinite_rows'] == 0


@pytest.mark.parametrize('fields', [
    {'terms': ('qd', 'qq', 'dd', 'dq')}, {'symmetric': True}, {'negatives': 'own'}])
def test_known_positives_and_the_querys_own_text_are_no_negatives(fields):
  q, p, pair = example()
  spot = [np.flatnonzero((pair.owner == i) & pair.is_positive)[0] for i in range(16)]
  wrong = [np.flatnonzero((pair.owner == i) & ~pair.is_positive)[0] for i in range(16)]
  texts, known = pair.passage_id.copy(), np.full((16, 2), -1, np.int32)
  known[2] = texts[spot[9]], texts[wrong[2]]
  known[10, 1] = texts[wrong[8]]
  texts[spot[11]] = pair.query_id[12]  # row 11 answers with row 12's question
  texts[wrong[13]] = pair.query_id[13]
  changed = dataclasses.replace(pair, passage_id=texts, known=known)
  cfg = config.LossConfig(temperature=0.3, **fields)
  want = oracle(q, p, changed, cfg)
  np.testing.assert_allclose(losses.info_nce(q, p, changed, cfg)[0], want, rtol=2e-6)
  for less in (dataclasses.replace(changed, known=None),
               dataclasses.replace(changed, passage_id=pair.passage_id)):
    assert abs(oracle(q, p, less, cfg) - want) > 1e-4
  mesh = sharding.make_mesh((2, 2, 1), jax.devices()[:4])
  with jax.set_mesh(mesh):
    args = sharding.to_global(mesh, (q, p, changed))
    np.testing.assert_allclose(jax.jit(lambda *a: losses.info_nce(*a, cfg)[0])(*args),
                               want, rtol=2e-6)


@pytest.mark.parametrize('name', [
    'margins', 'own', 'symmetric', 'gte',
    *(thorough(n) for n in (
        'plain', 'qwen3', 'group', 'decoupled', 'focal'))])
def test_rows_with_temperatures_of_their_own_equal_loops(name):
  q, p, pair = example()
  own = np.array([0.0, 0.02, 0.2], np.float32)[pair.group]
  cfg = config.LossConfig(  # weights as the loops' slope has them: not detached
      impl='blockwise', tile_bytes=4096,
      **CASES[name] | {'hardness': 0.0, 'focal_detach': False})
  fn = jax.jit(jax.value_and_grad(
      lambda q, p: losses.info_nce(q, p, pair, cfg, row_temperature=own)[0], (0, 1)))
  loss, grads = fn(q, p)
  want = oracle(q, p, pair, cfg, own)
  np.testing.assert_allclose(loss, want, rtol=2e-6, atol=2e-6)
  assert abs(want - oracle(q, p, pair, cfg)) > 1e-2
  rng, eps = np.random.default_rng(1), 1e-5
  for _ in range(3):  # the slope of the float64 loops along any direction
    dq, dp = rng.normal(size=q.shape), rng.normal(size=p.shape)
    up, down = (oracle(q + e * dq, p + e * dp, pair, cfg, own) for e in (eps, -eps))
    slope = np.vdot(grads[0], dq) + np.vdot(grads[1], dp)
    np.testing.assert_allclose(slope, (up - down) / (2 * eps), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('wrong', [np.nan, np.inf, -0.1, 1e-9])
def test_a_temperature_that_no_row_can_have_is_refused_and_seen(wrong):
  q, p, pair = example()
  own, cfg = np.float32([0, 0.1, wrong, *[0] * 13]), config.LossConfig()
  said = 'pairing.temperature is .* in row 2 .1 such'
  with pytest.raises(ValueError, match=said):
    losses.info_nce(q, p, dataclasses.replace(pair, temperature=own), cfg)
  with pytest.raises(ValueError, match=said):
    losses.info_nce(q, p, pair, cfg, row_temperature=own)
  with pytest.raises(ValueError, match=r'pairing.temperature has shape \(1,\)'):
    losses.info_nce(q, p, pair, cfg, row_temperature=own[:1])
  if not wrong > 0:
    scale = losses.temperature.of_rows(np.float32(20), own)
    np.testing.assert_allclose(scale[:4], [20, 10, np.nan, 20], rtol=1e-6)


def test_the_learned_temperature_leaves_rows_with_their_own_alone():
  q, p, pair = example()
  cfg = config.LossConfig(learn_temperature=True, symmetric=True)
  fn = jax.jit(jax.value_and_grad(
      lambda x, own: losses.info_nce(q, p, pair, cfg, x, own), has_aux=True))
  x, own = np.float32(np.log(20)), np.float32([0.0, 0.02, 0.2])[pair.group]
  eps = 1e-4
  down, up = (oracle(q, p, pair, dataclasses.replace(
      cfg, temperature=float(np.exp(-np.float64(x) - e))), own) for e in (-eps, eps))
  np.testing.assert_allclose(fn(x, own)[1], (up - down) / (2 * eps), rtol=2e-3)
  assert fn(x, np.full_like(own, 0.1))[1] == 0
  rows = fn(x, own)[0][1]['loss/of_rows']
  np.testing.assert_allclose(rows.mean(), fn(x, own)[0][0], rtol=1e-6)


@pytest.mark.parametrize('fields', [
    {'hardness': 3.0, 'hardness_on': 'all', 'symmetric': True},
    {'bounded': True, 'terms': ('qd', 'dq')}])
def test_hardness_and_bounded_know_the_temperature_of_each_row(fields):
  q, p, pair = example()
  own = np.array([0.0, 0.02, 0.002], np.float32)[pair.group]
  cfg = config.LossConfig(**fields)
  loss, _ = losses.info_nce(q, p, dataclasses.replace(pair, temperature=own), cfg)
  np.testing.assert_allclose(loss, oracle(q, p, pair, cfg, own), rtol=5e-6)


def split(mesh, x):
  return jax.device_put(x, jax.NamedSharding(
      mesh, jax.P(sharding.BATCH, *(None,) * (x.ndim - 1))))


@pytest.mark.parametrize('name, mode', [
    ('gte', 'gather'), ('margins', 'ring'), ('own', 'ring'),
    thorough('own', 'gather'), thorough('margins', 'gather'), thorough('gte', 'ring'),
    thorough('plain', 'gather'), thorough('plain', 'ring'),
    thorough('bounded', 'gather'), thorough('bounded', 'ring')])
@pytest.mark.parametrize('own', [False, thorough(True)])
@pytest.mark.parametrize('shapes', after(1, [
    [(2, 2, 2)], [(2, 1, 1), (2, 2, 1), (4, 2, 1)]]), ids=str)
def test_any_mesh_is_one_device(name, mode, own, shapes):
  if own and name == 'bounded':
    pytest.skip('bounded knows one temperature')
  q, p, pair = example()
  # At temperature 0.1 log-sum-exps stay below 8, where float32 has steps of
  # 5e-7: the bound of 1e-6 below is two of them.
  cfg = config.LossConfig(
      exchange=mode, tile_bytes=4096, **CASES[name] | {'temperature': 0.1})
  temperatures = np.float32([0.0, 0.2, 0.3])
  run = jax.jit(jax.value_and_grad(lambda q, p, pair: losses.info_nce(
      q, p, pair, cfg, row_temperature=temperatures[np.arange(len(q)) % 3]
      if own else None)[0], argnums=(0, 1)))
  want, (dq, dp) = run(q, p, pair)
  for shape in shapes:
    mesh = sharding.make_mesh(shape, jax.devices()[:int(np.prod(shape))])
    with jax.set_mesh(mesh):
      args = jax.tree.map(functools.partial(split, mesh), (q, p, pair))
      loss, grads = run(*args)
      again, grads2 = run(*args)
    np.testing.assert_allclose(loss, want, rtol=1e-6, err_msg=str(shape))
    for got, ref, twice in zip(grads, (dq, dp), grads2, strict=True):
      assert np.linalg.norm(got - ref) <= 1e-6 * np.linalg.norm(ref), shape
      assert (np.asarray(got) == np.asarray(twice)).all()
    assert loss == again


@pytest.mark.parametrize('mode', ['gather', 'ring'])
def test_bfloat16_equals_loops_on_rounded_vectors(mode):
  q, p, pair = example()
  cfg = config.LossConfig(dtype='bfloat16', exchange=mode, symmetric=True)
  rounded = [np.asarray(jax.numpy.asarray(x, 'bfloat16').astype('float32'))
             for x in (q, p)]
  loss, _ = losses.info_nce(q, p, pair, cfg)
  np.testing.assert_allclose(loss, oracle(*rounded, pair, cfg), rtol=1e-6)


def test_layout_of_passages_means_nothing():
  """P N N P N N, P P N N N N and any other order: the same loss and gradient."""
  q, p, pair = example(shuffle=False)
  grad = jax.jit(jax.value_and_grad(
      lambda q, p, pair: losses.info_nce(q, p, pair, config.LossConfig())[0],
      argnums=(0, 1)))
  want, (dq, dp) = grad(q, p, pair)
  blocked = np.argsort(~pair.is_positive, kind='stable')
  for order in (blocked, np.random.default_rng(0).permutation(len(p))):
    moved = dataclasses.replace(pair, **{
        name: getattr(pair, name)[order]
        for name in ('owner', 'is_positive', 'passage_id')})
    loss, (dq2, dp2) = grad(q, p[order], moved)
    np.testing.assert_allclose(loss, want, rtol=5e-7)
    np.testing.assert_allclose(dq2, dq, atol=2e-7)
    np.testing.assert_allclose(dp2, dp[order], atol=2e-7)


def test_metrics_say_what_happened():
  q, p, pair = example()
  pair = dataclasses.replace(pair, in_batch=np.zeros_like(pair.in_batch))
  loss, metrics = losses.info_nce(q, p, pair, config.LossConfig(margin=-3.0))
  # Every candidate is above a threshold of s - 3: defined, not NaN.
  assert loss == 0 and metrics['loss/rows_without_negatives'] == 1
  assert metrics['loss/kept_negatives'] == 0 and metrics['loss/accuracy@1'] == 1
  own = np.mean([(pair.owner == i).sum() - 1 for i in range(len(q))])
  _, metrics = losses.info_nce(q, p, pair, config.LossConfig())
  # Query 5's one duplicate passage is its own; the two rows with duplicate
  # queries lose nothing of their own.
  assert own - 1 <= metrics['loss/kept_negatives'] <= own


def test_quantiles_of_positives_and_of_hardest_negatives():
  q, p, pair = example()
  pair = dataclasses.replace(pair, in_batch=np.ones_like(pair.in_batch))
  _, metrics = losses.info_nce(q, p, pair, config.LossConfig(temperature=0.02))
  score = q.astype(np.float64) @ p.T
  mine = [np.flatnonzero((pair.owner == i) & pair.is_positive)[0]
          for i in range(len(q))]
  same_text = pair.passage_id == pair.passage_id[mine][:, None]
  same_query = pair.is_positive & (
      pair.query_id[pair.owner] == pair.query_id[:, None])
  hidden = same_text | same_query | (pair.owner == -1)
  hardest = np.where(hidden, -np.inf, score).max(1)
  for name, want in (('positive_score', score[np.arange(len(q)), mine]),
                     ('hardest_negative', hardest)):
    for p_ in (10, 50, 90):
      np.testing.assert_allclose(metrics[f'loss/{name}_p{p_}'],
                                 np.quantile(want, p_ / 100), atol=1e-6)
  _, metrics = losses.info_nce(q, p, dataclasses.replace(
      pair, in_batch=np.zeros_like(pair.in_batch)), config.LossConfig(margin=-3.0))
  assert np.isnan(metrics['loss/hardest_negative_p50'])
  # Hardness moves the logits of negatives: they say nothing of ranks then.
  _, metrics = losses.info_nce(q, p, pair, config.LossConfig(hardness=5.0))
  assert 'loss/hardest_negative_p50' not in metrics
  assert 'loss/accuracy@1' not in metrics


@pytest.mark.thorough
def test_rows_without_candidates_take_no_gradient():
  q, p, pair = example()
  cfg = config.LossConfig(margin=-3.0, terms=('qd', 'dq'))
  grads = jax.grad(lambda q, p: losses.info_nce(q, p, pair, cfg)[0], (0, 1))(q, p)
  assert not any(np.asarray(g).any() for g in grads)


def test_learned_temperature_has_the_slope_of_the_loss():
  q, p, pair = example()
  cfg = config.LossConfig(learn_temperature=True, temperature=0.2, terms=('qd', 'qq'),
                          hardness=1.0, hardness_on='all')
  log_scale = losses.initial_log_scale(cfg)

  def loss(x):
    return losses.info_nce(q, p, pair, cfg, x)[0]

  step = 1e-3
  at = [oracle(q, p, pair, dataclasses.replace(
      cfg, temperature=float(np.exp(-np.float64(log_scale) - t))))
        for t in (-step, step)]
  np.testing.assert_allclose(jax.grad(loss)(log_scale), (at[1] - at[0]) / (2 * step),
                             rtol=1e-5)


@pytest.mark.parametrize('log_scale, scale, flows', [
    (9.0, 100.0, False), (-5.0, 1.0, True)])
def test_exploding_temperature_is_clamped_and_reported(log_scale, scale, flows):
  q, p, pair = example()
  cfg = config.LossConfig(learn_temperature=True)

  def loss(x):
    return losses.info_nce(q, p, pair, cfg, x)

  (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(
      jax.numpy.float32(log_scale))
  assert np.isfinite(value) and metrics['loss/temperature_clamped'] == 1
  np.testing.assert_allclose(metrics['loss/temperature'], 1 / scale, rtol=1e-6)
  # Positives lead here: more scale, less loss. Outside its range the parameter
  # only feels what leads it back.
  assert (slope != 0) == flows


def test_a_temperature_that_is_nan_is_seen():
  q, p, pair = example()
  cfg = config.LossConfig(learn_temperature=True)
  value, metrics = jax.jit(lambda x: losses.info_nce(q, p, pair, cfg, x))(
      jax.numpy.float32('nan'))
  assert np.isnan(value) and metrics['loss/temperature_clamped'] == 1


BAD = [
    (lambda q, p, r: (q[:, :8], p, r), 'one model must embed both'),
    (lambda q, p, r: (q.astype(np.float16), p, r), 'give float32'),
    (lambda q, p, r: (np.where(np.arange(16)[:, None] == 3, np.nan, q), p, r),
     r'query embeddings have NaN, inf or numbers beyond .* 1 rows, first \[3\]'),
    (lambda q, p, r: (q, p, dataclasses.replace(r, owner=np.int64(r.owner))),
     'pairing.owner is int64; it must be int32'),
    (lambda q, p, r: (q, p, dataclasses.replace(r, in_batch=r.in_batch[1:])),
     r'pairing.in_batch has shape \(15,\)'),
    (lambda q, p, r: (q, p, dataclasses.replace(r, known=r.query_id)),
     r'pairing.known has shape \(16,\), not \(16, P\)'),
    (lambda q, p, r: (q, p, dataclasses.replace(r, score=np.zeros(64))),
     'pairing.score is float64; it must be float32'),
]


@pytest.mark.parametrize('change, message', BAD)
def test_bad_input_is_named(change, message):
  with pytest.raises(ValueError, match=message):
    losses.info_nce(*change(*example()), config.LossConfig())


def test_nonfinite_rows_are_counted_inside_jit():
  q, p, pair = example()
  q[3] = np.inf
  _, metrics = jax.jit(lambda q, p: losses.info_nce(q, p, pair, config.LossConfig()))(
      q, p)
  assert metrics['loss/nonfinite_rows'] == 1


def test_rows_that_do_not_split_are_refused():
  q, p, pair = example()
  with jax.set_mesh(sharding.make_mesh()), pytest.raises(
      ValueError, match='63 rows do not split over 8 devices'):
    losses.info_nce(q, p[:-1], dataclasses.replace(
        pair, owner=pair.owner[:-1], is_positive=pair.is_positive[:-1],
        passage_id=pair.passage_id[:-1]), config.LossConfig())


def test_split_width_is_refused():
  q, p, pair = example()
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh), pytest.raises(ValueError, match="mesh axis 'tensor'"):
    q = jax.device_put(q, jax.NamedSharding(mesh, jax.P(None, 'tensor')))
    losses.info_nce(q, p, pair, config.LossConfig())


@pytest.mark.parametrize('change, message', [
    ({'temperature': 0.0}, 'temperature is 0.0; give 1e-06 to'),
    ({'temperature': float('nan')}, 'temperature is nan; give a number'),
    ({'terms': ('qq',)}, 'give qd and any of'),
    ({'symmetric': True, 'terms': ('qd', 'qq')}, 'use the term dq'),
    ({'negatives': 'own', 'symmetric': True}, "leaves the term qd alone"),
    ({'widths': (8, 16), 'width_weights': (1.0,)}, '1 entries for 2 widths'),
    ({'exchange': 'star'}, 'choose one of')])
def test_bad_config_is_named(change, message):
  with pytest.raises(ValueError, match=message):
    config.LossConfig(**change)
