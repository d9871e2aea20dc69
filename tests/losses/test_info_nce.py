"""The contrastive loss against loops in float64, on one device and on many."""

import functools

import jax
import numpy as np
import pytest

from jaxembed import config, losses, sharding, types

INF = float('inf')


def unit(rng, n, e):
  x = rng.normal(size=(n, e))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed=0, queries=16, negatives=3, width=32, shuffle=True, groups=3):
  """Ragged negatives in any order, duplicate texts, own-only rows, padding."""
  rng = np.random.default_rng(seed)
  owner, positive = [], []
  for i in range(queries):
    count = 1 + (negatives if i % 3 else max(negatives - 2, 0))
    owner += [i] * count
    positive += [True] + [False] * (count - 1)
  total = queries * (1 + negatives)
  pad = total - len(owner)
  owner, positive = np.array(owner + [-1] * pad), np.array(positive + [False] * pad)
  if shuffle:
    order = rng.permutation(total)
    owner, positive = owner[order], positive[order]
  passage_id = np.arange(1000, 1000 + total)
  spots = [np.flatnonzero(positive & (owner == i))[0] for i in range(queries)]
  passage_id[spots[1]] = passage_id[spots[4]]  # two rows share a positive
  passage_id[np.flatnonzero(owner == 5)[0]] = passage_id[spots[2]]
  query_id = np.arange(queries) + 50
  query_id[3] = query_id[7]  # the same question twice
  in_batch = np.ones(queries, bool)
  in_batch[[0, 6]] = False
  group = np.arange(queries) % groups
  q, p = unit(rng, queries, width), unit(rng, total, width)
  p[spots] = p[spots] + 1.5 * q  # positives resemble their queries
  p /= np.linalg.norm(p, axis=-1, keepdims=True)
  def i32(x):
    return np.asarray(x, np.int32)
  return (q.astype(np.float32), p.astype(np.float32), types.Pairing(
      owner=i32(owner), is_positive=positive, query_id=i32(query_id),
      passage_id=i32(passage_id), group=i32(group), in_batch=in_batch))


def oracle(q, p, pair: types.Pairing, cfg: config.LossConfig):
  """The loss as sentences: loops over rows and candidates, float64."""
  q, p = np.float64(q), np.float64(p)
  queries, total = len(q), len(p)
  spot = {i: next(c for c in range(total)
                  if pair.owner[c] == i and pair.is_positive[c])
          for i in range(queries)}
  pid = {i: pair.passage_id[spot[i]] for i in spot}
  def alpha(own):
    return cfg.hardness if cfg.hardness_on in (
        ('own', 'all') if own else ('shared', 'all')) else 0.0

  def limit(i):
    s = q[i] @ p[spot[i]]
    return min(s + cfg.margin, s * cfg.relative_margin
               if cfg.relative_margin < INF else INF)

  def sees(i, c):
    o = pair.owner[c]
    if o < 0 or pair.passage_id[c] == pid[i]:
      return False
    if pair.is_positive[c] and pair.query_id[o] == pair.query_id[i]:
      return False
    if o == i:
      return True
    return (pair.in_batch[i] and cfg.negatives == 'batch'
            and (not cfg.same_group or pair.group[o] == pair.group[i]))

  def peers(i):
    return [j for j in range(queries) if pair.in_batch[i] and pid[j] != pid[i]
            and pair.query_id[j] != pair.query_id[i]
            and (not cfg.same_group or pair.group[j] == pair.group[i])]

  def logits(term, i):
    scale = 1 / cfg.temperature
    out = []
    if term == 'qd':
      for c in range(total):
        s = q[i] @ p[c]
        if sees(i, c) and s <= limit(i):
          out.append(s * (scale + alpha(pair.owner[c] == i)))
    if term == 'dq':
      for j in range(queries):
        s = q[j] @ p[spot[i]]
        if j != i and sees(j, spot[i]) and s <= limit(i):
          out.append(s * (scale + alpha(False)))
    if term in ('qq', 'dd'):
      for j in peers(i):
        s = q[i] @ q[j] if term == 'qq' else p[spot[i]] @ p[spot[j]]
        if term == 'dd' or s <= limit(i):
          out.append(s * (scale + alpha(False)))
    return out

  def row(values, i):
    if not values:
      return 0.0
    positive = q[i] @ p[spot[i]] / cfg.temperature
    gap = np.logaddexp.reduce(values) - positive
    loss = gap if cfg.decoupled else np.logaddexp(0, gap)
    return loss * (1 / (1 + np.exp(-gap)))**cfg.focal_gamma

  terms = ('qd', 'dq') if cfg.symmetric else cfg.terms
  if cfg.symmetric:
    rows = [np.mean([row(logits(t, i), i) for t in terms]) for i in range(queries)]
  else:
    rows = [row([z for t in terms for z in logits(t, i)], i) for i in range(queries)]
  return np.mean(rows)


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
@pytest.mark.parametrize('impl', ['reference', 'blockwise'])
def test_equals_loops(name, impl):
  q, p, pair = example()
  cfg = config.LossConfig(impl=impl, tile_bytes=4096, **CASES[name])
  loss, metrics = losses.info_nce(q, p, pair, cfg)
  # float32 logits of up to 100 carry 1e-5 of absolute error.
  np.testing.assert_allclose(loss, oracle(q, p, pair, cfg), rtol=2e-6, atol=2e-6)
  assert metrics['loss/nonfinite_rows'] == 0


MESHES = [(2, 1, 1), (2, 2, 1), (4, 2, 1), (2, 2, 2)]


def split(mesh, x):
  return jax.device_put(x, jax.NamedSharding(
      mesh, jax.P(sharding.BATCH, *(None,) * (x.ndim - 1))))


def _slow(*args):
  return pytest.param(*args, marks=pytest.mark.slow)


@pytest.mark.parametrize('name, mode', [
    ('gte', 'gather'), ('margins', 'ring'), ('own', 'ring'),
    _slow('own', 'gather'), _slow('margins', 'gather'), _slow('gte', 'ring'),
    _slow('plain', 'gather'), _slow('plain', 'ring'),
    _slow('bounded', 'gather'), _slow('bounded', 'ring')])
def test_any_mesh_is_one_device(name, mode):
  q, p, pair = example()
  # At temperature 0.1 log-sum-exps stay below 8, where float32 has steps of
  # 5e-7: the bound of 1e-6 below is two of them.
  cfg = config.LossConfig(
      exchange=mode, tile_bytes=4096, **CASES[name] | {'temperature': 0.1})
  run = jax.jit(jax.value_and_grad(
      lambda q, p, pair: losses.info_nce(q, p, pair, cfg)[0], argnums=(0, 1)))
  want, (dq, dp) = run(q, p, pair)
  for shape in MESHES:
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
