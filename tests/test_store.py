"""Vectors on disk: what was put in comes out, whoever wrote it and however often it
was killed."""

import itertools
import json
import os
import socket
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from jaxembed import store
from jaxembed.store import codes

ROWS, WIDTH = 23, 12
VECTORS = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
IDS = [f'd{i * 7}-é' for i in range(ROWS)]


def _fill(writer, part=4, stop=None):
  """Writes VECTORS; dies once it has appended `stop` parts."""
  done = 0
  with writer:
    for shard in writer.shards():
      while shard.done < shard.rows:
        if done == stop:
          raise KeyboardInterrupt
        first = shard.first + shard.done
        count = min(part, shard.rows - shard.done)
        shard.append(codes.encode(VECTORS[first:first + count], writer.dtype))
        done += 1
      shard.finish(IDS[shard.first:shard.first + shard.rows])
    return writer.finish()


def _writer(target, dtype='float32', **settings):
  return store.Writer(target, {'model': 'm'}, ROWS, WIDTH, dtype, shard_rows=10,
                      **settings)


def _float64(dtype):
  """What each type keeps of a number, by its definition and in loops."""
  if dtype == 'float16':
    return VECTORS.astype(np.float16).astype(np.float64)
  if dtype == 'bfloat16':  # the upper half of a float32, rounded to even
    return VECTORS.astype(ml_dtypes.bfloat16).astype(np.float64)
  if dtype == 'binary':
    return np.where(VECTORS > 0, 1.0, -1.0)
  return VECTORS.astype(np.float64)


@pytest.mark.parametrize('dtype', store.DTYPES)
def test_what_went_in_comes_out(tmp_path, dtype):
  assert _fill(_writer(tmp_path / 'v', dtype))
  found = store.open(tmp_path / 'v')
  wanted = _float64(dtype)
  # A code is at most half a step off, and 127 steps reach the largest value.
  bound = np.abs(VECTORS).max(1, keepdims=True) / 253 if dtype == 'int8' else 0
  order = [22, 0, 9, 10, 10, 19, 20]
  assert found.shape == (ROWS, WIDTH) and found.dtype == dtype
  for got, want in ((found[:], wanted), (found[8:21], wanted[8:21]),
                    (found.rows(order), wanted[order]), (found[order], wanted[order]),
                    (np.stack([found[22], found[0]]), wanted[[22, 0]])):
    assert got.dtype == np.float32
    assert (np.abs(got - want) <= (bound if np.ndim(bound) == 0 or len(got) == ROWS
                                   else np.max(bound))).all()
  assert found.ids == IDS and found.ids_of([20, 3]) == [IDS[20], IDS[3]]
  assert found.find([IDS[21], 'none', IDS[0], '']).tolist() == [21, -1, 0, -1]
  assert found.work == {'model': 'm'}
  found.verify()


def test_a_shard_of_floats_is_a_file_that_numpy_opens(tmp_path):
  _fill(_writer(tmp_path / 'v'))
  np.testing.assert_array_equal(np.load(tmp_path / 'v/shard-00001.npy'), VECTORS[10:20])
  single = store.open(tmp_path / 'v/shard-00001.npy')
  np.testing.assert_array_equal(single.rows([9, 0]), VECTORS[[19, 10]])
  assert single.ids_of([2]) == ['2'] and single.find(['2', 'x', '99']).tolist() == [
      2, -1, -1]


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
@pytest.mark.parametrize('stop', range(7))
def test_a_kill_anywhere_leaves_the_same_bytes(tmp_path, stop, dtype):
  _fill(_writer(tmp_path / 'whole', dtype))
  with pytest.raises(KeyboardInterrupt):
    _fill(_writer(tmp_path / 'killed', dtype), stop=stop)
  assert not (tmp_path / 'killed').exists()
  with pytest.raises(FileNotFoundError, match='is unfinished'):
    store.open(tmp_path / 'killed')
  with pytest.raises(KeyboardInterrupt):  # what remains is 7 - stop parts
    _fill(_writer(tmp_path / 'killed', dtype), stop=max(6 - stop, 0))
  _fill(_writer(tmp_path / 'killed', dtype))
  assert _bytes(tmp_path / 'killed') == _bytes(tmp_path / 'whole')


def _bytes(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_hosts_fill_one_store(tmp_path):
  _fill(_writer(tmp_path / 'one'))
  assert not _fill(_writer(tmp_path / 'two', host=(1, 2)))
  assert _fill(_writer(tmp_path / 'two', host=(0, 2)))
  assert _bytes(tmp_path / 'two') == _bytes(tmp_path / 'one')


def test_other_work_is_refused_or_replaced(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    _fill(_writer(tmp_path / 'v'), stop=3)
  other = dict(work={'model': 'n'}, rows=ROWS, width=WIDTH, shard_rows=10)
  with pytest.raises(ValueError, match=r"other work: model was 'm', is 'n'"):
    _fill(store.Writer(tmp_path / 'v', **other))
  _fill(store.Writer(tmp_path / 'v', **other, overwrite=True))
  with pytest.raises(FileExistsError, match='is complete'):
    _writer(tmp_path / 'v')
  _fill(_writer(tmp_path / 'v', 'binary', overwrite=True))
  assert store.open(tmp_path / 'v').dtype == 'binary'
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/notes.txt').write_text('x')
  for overwrite in (False, True):
    with pytest.raises(FileExistsError, match='no vector store'):
      _writer(tmp_path / 'mine', overwrite=overwrite)


_HOLD = """
import sys, time
from jaxembed import store
with store.Writer(sys.argv[1], {'model': 'm'}, 23, 12, shard_rows=10,
                  host=(0, int(sys.argv[2]))):
  print('ready', flush=True)
  time.sleep(60)
"""


@pytest.mark.parametrize('host', [(0, 1), (0, 2)])
def test_a_second_writer_is_refused_by_name(tmp_path, host):
  other = subprocess.Popen(
      [sys.executable, '-c', _HOLD, str(tmp_path / 'v'), str(host[1])],
      stdout=subprocess.PIPE, text=True)
  try:
    assert other.stdout.readline() == 'ready\n'
    with pytest.raises(BlockingIOError, match=(
        f'being written by process {other.pid} on host {socket.gethostname()}')):
      _fill(_writer(tmp_path / 'v'))
    if host[1] == 2:
      assert not _fill(_writer(tmp_path / 'v', host=(1, 2)))
    other.kill()  # what a killed process held is free
    other.wait()
    assert _fill(_writer(tmp_path / 'v'))
  finally:
    other.kill()
    other.communicate()


def test_where_locks_are_missing_the_name_in_the_file_must_do(tmp_path, monkeypatch):
  from jaxembed.files import alone

  def without(*_):
    raise OSError('no locks')

  monkeypatch.setattr(alone.fcntl, 'flock', without)
  monkeypatch.setattr(alone, 'STALE', 1.0)
  partial = tmp_path / 'v.partial'
  partial.mkdir()
  lock = partial / 'writer-0-of-1.lock'
  lock.write_text(json.dumps({'host': 'elsewhere', 'process': 7}))
  signs = itertools.count()
  with monkeypatch.context() as m, pytest.warns(UserWarning, match='host elsewhere'):
    m.setattr(alone, '_touched', lambda lock: next(signs))
    with pytest.raises(BlockingIOError, match='process 7 on host elsewhere.*or remove'):
      _fill(_writer(tmp_path / 'v'))
  ended = subprocess.Popen(['true'])
  ended.wait()
  lock.write_text(json.dumps({'host': socket.gethostname(), 'process': ended.pid}))
  assert _fill(_writer(tmp_path / 'v'))


@pytest.mark.parametrize('damage, says', [
    (lambda v: (v / 'shard-00001.npy').unlink(), 'shard-00001.npy is missing'),
    (lambda v: os.truncate(v / 'shard-00001.npy', 300), 'shard-00001.npy is damaged'),
    (lambda v: (v / 'shard-00001.ids.npy').unlink(), 'ids.npy is missing'),
    (lambda v: np.save(v / 'shard-00002.npy', VECTORS), 'not .3, 12. float32'),
    (lambda v: (v / 'manifest.json').write_text('{}'), 'is damaged'),
    (lambda v: (v / 'manifest.json').write_text((v / 'manifest.json').read_text(
        ).replace('"version": 1', '"version": 9')), 'version 9'),
])
def test_damage_is_named(tmp_path, damage, says):
  _fill(_writer(tmp_path / 'v'))
  damage(tmp_path / 'v')
  with pytest.raises(ValueError, match=says):
    store.open(tmp_path / 'v')


@pytest.mark.parametrize('damage, says', [
    (lambda file: file.write_bytes(b'abc'), 'is damaged'),
    (lambda file: os.truncate(file, 140), 'is damaged'),
    (lambda file: np.save(file, np.array([b'a'])), 'not 10 ids'),
])
def test_damaged_ids_are_named_when_they_are_asked_for(tmp_path, damage, says):
  _fill(_writer(tmp_path / 'v'))
  damage(tmp_path / 'v/shard-00001.ids.npy')
  found = store.open(tmp_path / 'v')
  for read in (lambda: found.ids, lambda: found.find(['1'])):
    with pytest.raises(ValueError, match=f'shard-00001.ids.npy .*{says}.* make the '):
      read()


def test_a_changed_bit_is_found_when_asked(tmp_path):
  _fill(_writer(tmp_path / 'v'))
  file = tmp_path / 'v/shard-00001.npy'
  data = bytearray(file.read_bytes())
  data[-WIDTH * 4 * 5] ^= 1  # in the sixth row of the ten
  file.write_bytes(data)
  with pytest.raises(ValueError, match='shard-00001.npy: rows 4 to 7 are damaged'):
    store.open(tmp_path / 'v').verify()


def test_bad_arguments_are_named(tmp_path):
  for wrong, says in (({'dtype': 'int4'}, "'int4' is not stored"),
                      ({'host': (2, 2)}, 'host 2 of 2')):
    with pytest.raises(ValueError, match=says):
      _writer(tmp_path / 'v', **wrong)
  _fill(_writer(tmp_path / 'v'))
  found = store.open(tmp_path / 'v')
  with pytest.raises(IndexError, match='rows 0 to 22'):
    found.rows([23])
  with pytest.raises(FileNotFoundError, match='no vector store'):
    store.open(tmp_path / 'nothing')
  with _writer(tmp_path / 'w') as writer:
    shard = next(writer.shards())
    with pytest.raises(ValueError, match='0 of 10 rows'):
      shard.finish()
    shard.append(codes.encode(VECTORS[:10], 'float32'))
    with pytest.raises(ValueError, match='cannot be stored'):
      shard.finish(['x' * 2000] * 10)
