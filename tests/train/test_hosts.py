"""Hosts that differ are named before the first step, and so is one that dies."""

import json
import time

import jax
import pytest

from jaxembed.train import hosts


class _Store:
  """As much of jax.distributed's store of names as is called, filled by others."""

  def __init__(self):
    self.said = {}

  def key_value_set(self, name, value, allow_overwrite=False):
    if not allow_overwrite and name in self.said:
      raise jax.errors.JaxRuntimeError('ALREADY_EXISTS')
    self.said[name] = value

  def blocking_key_value_get(self, name, milliseconds):
    del milliseconds
    if name not in self.said:
      raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: no such name')
    return self.said[name]

  def key_value_try_get(self, name):
    if name not in self.said:
      raise jax.errors.JaxRuntimeError('NOT_FOUND: no such name')
    return self.said[name]


@pytest.fixture
def store(monkeypatch):
  found = _Store()
  monkeypatch.setattr(hosts, '_store', lambda: found)
  monkeypatch.setattr(hosts, '_NUMBER', iter(range(99)))
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(jax, 'process_index', lambda: 0)
  return found


def _others(store, **facts):
  for i in (1, 2):
    its = {'config.seed': 0, 'data.rows': 'aa'} | (facts if i == 2 else {})
    store.said[f'jaxembed/0/{i}'] = json.dumps({'host': f'h{i}', 'facts': its})


def test_who_differs_is_named_with_what(store):
  mine = lambda: {'config': {'seed': 0}, 'data': {'rows': 'aa'}}
  _others(store, **{'data.rows': 'bb'})
  with pytest.raises(ValueError, match=(
      r"process 2 \(host h2\) differs from process 0 .*data.rows is 'bb', not 'aa'")):
    hosts.compare('data', mine)


def test_equal_hosts_are_listed_and_one_that_does_not_come_is_named(store):
  mine = lambda: {'config': {'seed': 0}, 'data': {'rows': 'aa'}}
  _others(store)
  assert hosts.compare('data', mine)[1:] == ['h1', 'h2']
  with pytest.raises(OSError, match='process 1 did not say its data'):
    hosts.compare('data', mine)


@pytest.mark.parametrize('first', [0, 1, 2])
def test_a_notice_to_one_host_stops_all_after_the_same_step(store, monkeypatch, first):
  """Processes two steps apart, as far as they can be; who is ahead does not matter."""
  notices, done, ended = [False] * 3, [0, 0, 0], {}
  monkeypatch.setattr(hosts, '_NUMBER', iter([7, 7, 7]))  # each counts for itself
  answers = [hosts.agreed(lambda i=i: notices[i]) for i in range(3)]
  order = [first, first, (first + 1) % 3, (first + 1) % 3, (first + 2) % 3] + [
      (first + 2) % 3] + list(range(3)) * 12
  for turn, i in enumerate(order):
    notices[first] = notices[first] or turn == 1
    if i in ended:
      continue
    done[i] += 1
    assert max(done) - min(done) <= 2
    if answers[i](done[i]):
      ended[i] = done[i]
  assert len(ended) == 3 and len(set(ended.values())) == 1


def test_one_that_gives_no_sign_ends_the_others_by_name(store, monkeypatch, capfd):
  monkeypatch.setattr(hosts, 'BEAT', 0.02)
  monkeypatch.setattr(hosts, 'GONE', 0.3)
  ended = []

  def end(code):
    ended.append(code)
    raise SystemExit

  monkeypatch.setattr(hosts.os, '_exit', end)
  monkeypatch.setattr('threading.excepthook', lambda _: None)
  with hosts.watched(['h0', 'h1', 'h2']):
    until = time.monotonic() + 5
    while not ended and time.monotonic() < until:
      store.said['jaxembed/0/1'] = 'done'
      time.sleep(0.02)
  assert ended == [1]
  assert 'process 2 on host h2 has given no sign of life' in capfd.readouterr().err
