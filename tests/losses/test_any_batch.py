"""Batches of every kind: the loss of float64 loops, its gradient, or a row's name."""

import functools

from hypothesis import given, settings, strategies as st
import jax
import numpy as np
import pytest
import torch

from jaxembed import config, losses, types

Q, C, E = 5, 14, 8
CONFIGS = (
    config.LossConfig(temperature=0.2),
    config.LossConfig(temperature=0.3, symmetric=True, relative_margin=0.9),
    config.LossConfig(temperature=0.3, terms=('qd', 'qq', 'dd', 'dq'), same_group=True),
    config.LossConfig(temperature=0.1, negatives='own', margin=0.2),
)


@st.composite
def batches(draw):
  """(query, passage, pairing): few ids, so that many are equal; any row may be odd."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  owner = np.array(draw(st.lists(st.integers(-1, Q - 1), min_size=C, max_size=C)))
  positive = np.zeros(C, bool)
  for i in range(Q):
    mine = np.flatnonzero(owner == i)
    if len(mine) and draw(st.booleans() if i else st.just(True)):
      positive[draw(st.sampled_from(list(mine)))] = True
  positive |= (owner < 0) & (rng.random(C) < 0.5)  # flags of padding mean nothing
  texts = draw(st.sampled_from([12, 1000]))
  q, p = (rng.normal(size=(n, E)) * rng.uniform(2, 3, (n, 1)) for n in (Q, C))
  odd = st.tuples(st.integers(0, Q + C - 1),
                  st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 'text', 1e15]))
  for row, value in draw(st.lists(odd, max_size=3)):
    x, at = (q, row) if row < Q else (p, row - Q)
    if value == 'text':
      x[at] = p[(at + 1) % C]  # an equal vector under another id
    elif value in (0.0, 1e15):
      x[at] *= value
    else:
      x[at, row % E] = value
  return np.float32(q), np.float32(p), types.Pairing(
      owner=np.int32(owner), is_positive=positive,
      query_id=np.int32(rng.integers(0, texts, Q)),
      passage_id=np.int32(rng.integers(0, texts, C)),
      group=np.int32(rng.integers(0, 2, Q)), in_batch=rng.random(Q) < 0.7,
      temperature=np.float32(rng.choice([0, 0.15, 0.4], Q)),
      known=np.int32(rng.integers(-1, texts, (Q, 2))))


def loops(q, p, pair, cfg):
  """Value and gradients, float64: every pair is asked for its reasons."""
  q, p = (torch.tensor(np.float64(x), requires_grad=True) for x in (q, p))

  def unit(x):
    return x if not bool(x.detach().any()) else x / x.norm()

  a, b = [unit(x) for x in q], [unit(x) for x in p]
  pos = {int(o): c for c, o in enumerate(pair.owner) if o >= 0 and pair.is_positive[c]}
  texts = [{int(pair.query_id[i]), *(int(k) for k in pair.known[i] if k >= 0)}
           | ({int(pair.passage_id[pos[i]])} if i in pos else set()) for i in range(Q)]
  group = pair.group if cfg.same_group else pair.group * 0

  def meets(i, j):
    return pair.in_batch[i] and group[i] == group[j]

  def sees(i, c):
    o = int(pair.owner[c])
    if o < 0 or int(pair.passage_id[c]) in texts[i]:
      return False
    if pair.is_positive[c] and pair.query_id[o] == pair.query_id[i]:
      return False
    return o == i or (cfg.negatives == 'batch' and meets(i, o))

  def related(i, j):
    ids = [{int(pair.query_id[k]), int(pair.passage_id[pos[k]])} for k in (i, j)]
    return bool(texts[i] & ids[1] or texts[j] & ids[0])

  def negatives(term, i):
    s = (a[i] @ b[pos[i]]).item()
    limit = min(s + cfg.margin, s + (cfg.relative_margin - 1) * abs(s)
                if cfg.relative_margin < np.inf else np.inf)
    if term == 'qd':
      found = [a[i] @ b[c] for c in range(C) if sees(i, c)]
    elif term == 'dq':
      found = [a[j] @ b[pos[i]] for j in range(Q) if j != i and sees(j, pos[i])]
    else:
      x = a if term == 'qq' else [b[pos[j]] if j in pos else None for j in range(Q)]
      found = [x[i] @ x[j] for j in pos if meets(i, j) and not related(i, j)]
    return [s for s in found if term == 'dd' or not s.item() > limit]

  def row(i, terms):
    t = float(pair.temperature[i]) or cfg.temperature
    found = [s / t for term in terms for s in negatives(term, i)]
    if not found:  # 0, but that a positive which is not a number is seen
      return 0 * (a[i] @ b[pos[i]])
    gap = torch.logsumexp(torch.stack(found), 0) - a[i] @ b[pos[i]] / t
    return torch.nn.functional.softplus(gap, threshold=1e9)

  rows = [(row(i, ['qd']) + row(i, ['dq'])) / 2 if cfg.symmetric else row(i, cfg.terms)
          for i in sorted(pos)]
  total = sum(rows) / max(len(rows), 1)
  if torch.is_tensor(total) and total.requires_grad:
    total.backward()
  return float(total), *(np.zeros(x.shape) if x.grad is None else x.grad.numpy()
                         for x in (q, p))


@functools.cache
def compiled(i):
  return jax.jit(jax.value_and_grad(
      lambda q, p, pair: losses.info_nce(q, p, pair, CONFIGS[i]), (0, 1), has_aux=True))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(batches(), st.integers(0, len(CONFIGS) - 1))
def test_any_batch_has_the_loss_of_the_loops_or_names_the_row(batch, i):
  q, p, pair = batch
  (value, metrics), grads = compiled(i)(q, p, pair)
  want, *slopes = loops(q, p, pair, CONFIGS[i])
  bad = [~np.isfinite(q).all(-1), ~np.isfinite(p).all(-1) & (pair.owner >= 0)]
  assert metrics['loss/nonfinite_rows'] == sum(x.sum() for x in bad)
  if not np.isfinite(want):
    assert not np.isfinite(value)
  else:
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
  if bad[0].any() or bad[1].any():
    name, at = ('query', bad[0]) if bad[0].any() else ('passage', bad[1])
    with pytest.raises(ValueError, match=rf'{name} .*\[{np.flatnonzero(at)[0]}'):
      losses.info_nce(q, p, pair, CONFIGS[i])
    return
  for got, slope in zip(grads, slopes, strict=True):
    # By row: a row of length 1e15 has a gradient of 1e-15.
    for x, y in zip(np.float64(got), slope, strict=True):
      size = max(np.abs(y).max(), 1e-30)
      assert np.abs(x - y).max() <= 2e-3 * size + 1e-5, (x, y)


@pytest.mark.thorough
def test_a_padding_passage_may_hold_anything():
  rng = np.random.default_rng(0)
  q, p = (rng.normal(size=(n, E)).astype(np.float32) for n in (Q, C))
  owner = np.int32([*range(Q), *range(Q), -1, -1, -1, -1])
  pair = types.Pairing(
      owner=owner, is_positive=np.arange(C) < Q, query_id=np.arange(Q, dtype=np.int32),
      passage_id=np.arange(100, 100 + C, dtype=np.int32), group=np.zeros(Q, np.int32),
      in_batch=np.ones(Q, bool), temperature=np.zeros(Q, np.float32),
      known=np.full((Q, 2), -1, np.int32))
  cfg = config.LossConfig(widths=(3, E))
  run = jax.jit(jax.value_and_grad(
      lambda q, p: losses.info_nce(q, p, pair, cfg), (0, 1), has_aux=True))
  want = run(q, p)
  p[-2], p[-1] = np.nan, np.inf
  for a, b in zip(*map(jax.tree.leaves, (want, run(q, p))), strict=True):
    np.testing.assert_array_equal(a, b)
  losses.info_nce(q, p, pair, cfg)
