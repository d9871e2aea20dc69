"""Collectives of a contrastive step: which there are, and that they change nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config, losses, sharding, types
from jaxembed.kernels import contrastive
from jaxembed.kernels.contrastive import exchange
from tests.helpers.tiers import thorough

Q, C, E = 16, 32, 24
DEVICES = 8


def mesh():
  return sharding.make_mesh((4, 2, 1), jax.devices()[:DEVICES])


def split(where, x):
  return jax.device_put(x, jax.NamedSharding(
      where, jax.P(sharding.BATCH, *(None,) * (x.ndim - 1))))


def batch():
  """Two passages a row, of which the first is the positive: each on its device."""
  rng = np.random.default_rng(0)
  q, p = (rng.normal(size=(n, E)).astype(np.float32) for n in (Q, C))
  place = np.arange(C, dtype=np.int32)
  return q, p, types.Pairing(
      owner=place // 2, is_positive=place % 2 == 0,
      query_id=1000 + np.arange(Q, dtype=np.int32), passage_id=place,
      group=np.zeros(Q, np.int32), in_batch=np.ones(Q, bool))


def moved(q, p, pair):
  """The same batch with passages in another order: positives on other devices."""
  order = np.random.default_rng(1).permutation(C)
  return q, p[order], types.Pairing(**{
      **vars(pair), 'owner': pair.owner[order], 'is_positive': pair.is_positive[order],
      'passage_id': pair.passage_id[order]})


def step(mode, **fields):
  cfg = config.LossConfig(exchange=mode, **fields)
  return jax.jit(jax.value_and_grad(
      lambda q, p, pair: losses.info_nce(q, p, pair, cfg)[0], argnums=(0, 1)))


def collectives(text, branches=False):
  """(operation, numbers in its result), outside of the branches of conditions or in."""
  found = []
  for line in text.split('\n'):
    hit = re.search(r'= \(?\w+\[([\d,]+)\].*? (all-gather|reduce-scatter|'
                    r'collective-permute)(?:-start)?\(', line)
    if hit and ('/branch_' in line) == branches:
      found.append((hit[2], int(np.prod([int(d) for d in hit[1].split(',')]))))
  return found


@pytest.fixture
def accelerator(monkeypatch):
  """Branches as on an accelerator. The fake devices of a CPU may run one that holds a
  collective only in a program without others."""
  monkeypatch.setattr(exchange, '_can_branch', lambda: True)


@pytest.mark.parametrize('fields', [
    {}, thorough({'symmetric': True}), thorough({'terms': ('qd', 'qq', 'dq')})],
    ids=str)
def test_passages_are_gathered_once_and_their_gradient_is_scattered_once(
    fields, accelerator):
  """Where positives stand with their queries nothing of the branches runs: they would
  gather the passages a second time. Values and gradients are those of one device."""
  where, run = mesh(), step('gather', **fields)
  with jax.set_mesh(where):
    args = jax.tree.map(lambda x: split(where, x), batch())
    program = run.lower(*args).compile()
    got = program(*args)
  equal(got, step('gather', **fields)(*batch()))
  text = program.as_text()
  queries = 'qq' in fields.get('terms', ())
  assert [x for x in collectives(text) if x[1] == C * E] == [('all-gather', C * E)]
  scattered = [x for x in collectives(text) if x[0] == 'reduce-scatter' and x[1] >= E]
  assert sorted(scattered) == sorted(
      [('reduce-scatter', C * E // DEVICES)] + queries * [
          ('reduce-scatter', Q * E // DEVICES)])
  assert ('all-gather', C * E) in collectives(text, branches=True)


@pytest.mark.parametrize('mode', ['gather', thorough('ring')])
@pytest.mark.parametrize('fields', [
    {}, thorough({'negatives': 'own'}), thorough({'symmetric': True, 'margin': 0.1})],
    ids=str)
def test_positives_of_other_devices_give_what_one_device_gives(mode, fields):
  run, where, args = step(mode, **fields), mesh(), moved(*batch())
  want = run(*args)
  with jax.set_mesh(where):
    equal(run(*jax.tree.map(lambda x: split(where, x), args)), want)


def equal(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


@pytest.mark.parametrize('mode', ['gather', thorough('ring')])
@pytest.mark.parametrize('turn', [0, 5])
def test_rows_by_index_are_those_of_one_device(mode, turn, accelerator):
  """turn 0: all on their own device."""
  where = mesh()
  x = jnp.arange(C * E, dtype=jnp.float32).reshape(C, E)
  index = jnp.roll(jnp.arange(Q, dtype=jnp.int32) * 2 + 1, turn)

  def loss(x):
    found = contrastive.take(x, index, sharding.BATCH, mode)
    return jnp.sum(found * found), found

  with jax.set_mesh(where):
    slope, found = jax.jit(jax.grad(loss, has_aux=True))(split(where, x))
  np.testing.assert_array_equal(found, x[index])
  np.testing.assert_array_equal(slope, jnp.zeros_like(x).at[index].set(2 * x[index]))
