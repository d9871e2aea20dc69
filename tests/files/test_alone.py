"""Locks name their holder, and what a holder that ended left behind is taken over."""

import errno
import fcntl
import json
import os
import socket
import time

import pytest

from jaxembed.files import alone


@pytest.fixture(params=['locks', 'no locks'])
def system(request, monkeypatch):
  """A file system that has locks, and one that has none."""
  if request.param == 'no locks':
    def refused(*_):
      raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', refused)
    monkeypatch.setattr(alone, 'BEAT', 0.02)
    monkeypatch.setattr(alone, 'STALE', 0.3)
  return request.param


def _left(lock, host, process):
  lock.write_text(json.dumps({'host': host, 'process': process}))


def test_the_second_is_told_who_the_first_is(tmp_path, system):
  lock = tmp_path / 'x.lock'
  with alone.alone(lock, 'the run', 'wait'):
    with pytest.raises(alone.Held, match=f'process {os.getpid()} on host') as caught:
      alone.alone(lock, 'the run', 'wait').__enter__()
    assert caught.value.host == socket.gethostname()
  assert not lock.exists()


def test_a_process_of_this_host_that_ended_has_no_lock(tmp_path, system):
  _left(tmp_path / 'x.lock', socket.gethostname(), 2**22 + 1)
  with alone.alone(tmp_path / 'x.lock', 'the run', 'wait'):
    pass


def test_another_host_without_a_sign_has_none_and_one_that_lives_has(
    tmp_path, system, recwarn):
  lock = tmp_path / 'x.lock'
  _left(lock, 'elsewhere', 7)
  with alone.alone(lock, 'the run', 'wait'):
    if system == 'no locks':
      assert 'held on host elsewhere; waiting' in str(recwarn.pop().message)
      touched = lock.stat().st_mtime_ns
      time.sleep(0.2)
      assert lock.stat().st_mtime_ns > touched  # a sign for others
      _left(lock, 'elsewhere', 7)  # which is as if that one beat
      with pytest.raises(alone.Held, match='process 7 on host elsewhere'):
        alone.alone(lock, 'the run', 'wait').__enter__()
