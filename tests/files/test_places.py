"""Paths that are URLs: handled or refused, and never folders called 'gs:'."""

import json
import os
import pathlib
import shutil
import types

import numpy as np
import pytest

import jaxembed
from jaxembed import checkpoint, config, corpus, data, front, store, workdir
from jaxembed.config import SourceConfig
from jaxembed.convert import exporters
from jaxembed.data import beir, overlap, sources
from jaxembed.files import mirror, place, remote_lock, url
from jaxembed.mining import collection
from jaxembed.train import average, loop, metrics, report
from tests.helpers import memory_buckets

obstore = pytest.importorskip('obstore')
_RUN = config.Config(model=config.ModelSpec(preset='tiny_bert'))


@pytest.fixture
def buckets(tmp_path, monkeypatch):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  with memory_buckets.opened(tmp_path / 'home'):
    yield tmp_path / 'here'
  assert not list((tmp_path / 'here').glob('*:*'))  # no folder is called 'gs:'


# Every door that takes a path, given one of a scheme that is not read.
_DOORS = {
    'train': lambda p: loop.train(_RUN, p),
    'fit': lambda p: jaxembed.fit(config=_RUN, workdir=p),
    'load': lambda p: jaxembed.Embedder.load(p),
    'open': lambda p: jaxembed.bundle.open(p),
    'workdir': lambda p: workdir.load(p),
    'checkpoints': lambda p: checkpoint.Checkpoints(p),
    'steps': lambda p: checkpoint.steps(p),
    'save_params': lambda p: checkpoint.save_params(p, 1, {}),
    'load_params': lambda p: checkpoint.load_params(p),
    'average': lambda p: average.average([p], 'mean'),
    'report': lambda p: report.write(p),
    'metrics': lambda p: metrics.read(p),
    'evaluate': lambda p: front.evaluate(p, [{'query': 'a', 'positive': 'b'}]),
    'source': lambda p: sources.load(SourceConfig(name='x', kind='jsonl', path=p)),
    'sources': lambda p: sources.load(
        SourceConfig(name='x', kind='jsonl', path='x.jsonl', paths=(p,))),
    'datasets': lambda p: sources.load(SourceConfig(name='x', kind='datasets', path=p)),
    'data_dir': lambda p: sources.load(
        SourceConfig(name='x', kind='tfds', path='x', data_dir=p)),
    'cache_dir': lambda p: sources.load(
        SourceConfig(name='x', kind='jsonl', path='x', cache_dir=p)),
    'given': lambda p: jaxembed.fit('m', p),
    'beir': lambda p: beir.load(p),
    'overlap': lambda p: overlap.evaluation_texts(p),
    'store': lambda p: store.open(p),
    'writer': lambda p: store.Writer(p, {}, 1, 1).__enter__(),
    'tokenizer': lambda p: data.Tokenizer.load(p),
    'encode': lambda p: corpus.encode_file(None, 'x.txt', p),
    'texts': lambda p: corpus.encode_file(None, p, 'x.npy'),
    'export': lambda p: exporters.export(None, p),
    'mined': lambda p: collection.load(p),
}


@pytest.mark.parametrize('door', _DOORS)
def test_a_scheme_that_is_not_read_is_refused_by_name(buckets, door):
  for path in ('hdfs://host/run', pathlib.Path('hdfs://host/run')):
    with pytest.raises((ValueError, OSError), match=r'hdfs://?host/run'):
      _DOORS[door](path)
  assert not list(buckets.iterdir())


def test_what_is_a_url():
  assert url.of('gs://bucket/run/') == url.of(
      pathlib.Path('gs://bucket/run')) == url.of('gs:bucket/run') == 'gs://bucket/run'
  for path in ('/a/b', 'a/b', 'C:/a', 'package:name/folder', 'org/name', 'a:b', None):
    assert url.of(path) is None
  for wrong in ('s3:///run', 's3://b/../run', 's3://b//run'):
    with pytest.raises(ValueError, match='names no place in a bucket'):
      url.checked(url.of(wrong))


def test_rows_are_fetched_once_for_each_state(buckets, monkeypatch):
  rows = url.Objects('s3://b/rows')
  for name in ('a', 'b'):
    rows.write(f'{name}.jsonl', json.dumps({'query': name, 'positive': 'x'}).encode())
  rows.write('other.txt', b'no')

  def queries(path):
    return [r.query for r in sources.load(SourceConfig(name='x', path=path,
                                                       kind='jsonl'))]

  assert queries('s3://b/rows') == queries('s3://b/rows/*.jsonl') == ['a', 'b']
  assert queries('s3://b/rows/b.jsonl') == ['b']
  fetched = []
  fetch = url.Objects.fetch
  monkeypatch.setattr(url.Objects, 'fetch', lambda self, name, *more: (
      fetched.append(name), fetch(self, name, *more))[1])
  rows.write('b.jsonl', json.dumps({'query': 'c', 'positive': 'x'}).encode())
  assert queries('s3://b/rows') == ['a', 'c']
  assert fetched == ['b.jsonl']
  with pytest.raises(FileNotFoundError, match='s3://b/none: there is nothing'):
    queries('s3://b/none')


class _Embedder:
  """As much of an Embedder as `encode_file` calls."""

  max_seq_length = 8
  width = staticmethod(lambda dim: 3)
  prompt_text = staticmethod(lambda name, prompt: prompt or '')
  vector_fingerprint = staticmethod(lambda: 'model')

  def __init__(self, fails=False):
    self.shapes, self.fails = set(), fails
    self.report = types.SimpleNamespace(truncated=0, empty=0)

  def encode(self, texts, **_):
    if self.fails:
      raise KeyboardInterrupt
    return np.array([[len(t), 1, 2] for t in texts], np.float32)


def test_what_is_written_goes_to_the_url_whole_or_not_at_all(buckets):
  url.Objects('gs://b/t.txt').write('', b'one\nthree\n')
  with pytest.raises(KeyboardInterrupt):
    corpus.encode_file(_Embedder(fails=True), 'gs://b/t.txt', 'gs://b/vectors')
  assert not url.Objects('gs://b/vectors').names()
  found = corpus.encode_file(_Embedder(), 'gs://b/t.txt', 'gs://b/vectors')
  np.testing.assert_array_equal(found[:], [[3, 1, 2], [5, 1, 2]])
  np.testing.assert_array_equal(store.open('gs://b/vectors')[:], found[:])
  with pytest.raises(FileExistsError):
    corpus.encode_file(_Embedder(), 'gs://b/t.txt', 'gs://b/vectors')
  corpus.encode_file(_Embedder(), 'gs://b/t.txt', 'gs://b/one.npy')
  np.testing.assert_array_equal(np.load(place.fetched('gs://b/one.npy')), found[:])


def test_a_second_writer_is_refused_and_a_dead_one_succeeded(buckets):
  there, told = url.Objects('s3://b/run'), []
  with remote_lock.held(there, 'run.lock', 'the run', 'wait', told.append):
    number = json.loads(there.read('run.lock'))['process']
    with (pytest.raises(BlockingIOError, match=f'by process {number} on host .*; wait'),
          remote_lock.held(there, 'run.lock', 'the run', 'wait', told.append)):
      pass
  assert not there.names()
  # Of another host that gives no sign; and a process of this host that is gone.
  there.write('run.lock', b'{"host": "elsewhere", "process": 7, "token": "x"}')
  with remote_lock.held(there, 'run.lock', 'the run', 'wait', told.append) as lock:
    assert 'process 7 on host elsewhere' in ' '.join(told)
    assert 'taken over' in told[-1]
    there.write('run.lock', b'{"host": "elsewhere", "process": 8, "token": "y"}')
    lock._thread.join(5)
    assert lock.lost
  assert b'"y"' in there.read('run.lock')  # another's lock stays


def test_a_checkpoint_without_its_mark_does_not_count(buckets, tmp_path):
  there = url.Objects('s3://b/run')
  one, two = (mirror.Mirror(there, tmp_path / name) for name in ('one', 'two'))
  for step in (3, 6):
    part = tmp_path / 'one' / 'checkpoints' / str(step) / 'params'
    part.mkdir(parents=True)
    (part / 'data').write_text(str(step))
  one.push()
  there.remove(f'checkpoints/6/{mirror.MARK}')  # a kill comes before it
  assert workdir.steps('s3://b/run') == [3]
  two.pull()
  assert sorted(p.name for p in (tmp_path / 'two/checkpoints').iterdir()) == ['3']
  assert 'checkpoints/6/params/data' in there.names()
  two.pull(repair=True)
  assert 'checkpoints/6/params/data' not in there.names()
  (tmp_path / 'two/checkpoints/3').rename(tmp_path / 'two/checkpoints/9')
  two.push()
  assert workdir.steps('s3://b/run') == [9]


def test_the_mark_is_sent_last_though_orbax_has_left_one(buckets, tmp_path,
                                                          monkeypatch):
  sent, write = [], url.Objects.write
  monkeypatch.setattr(url.Objects, 'write', lambda self, name, *more, **options: (
      sent.append(name), write(self, name, *more, **options))[1])
  checkpoint.save_params(tmp_path / 'here' / 'checkpoints', 3, {'w': np.ones(3)})
  assert (tmp_path / 'here' / 'checkpoints' / '3' / mirror.MARK).exists()
  mirror.Mirror(url.Objects('s3://b/run'), tmp_path / 'here').push()
  mark = f'checkpoints/3/{mirror.MARK}'
  assert sent.count(mark) == 1 and sent[-1] == mark


def test_a_checkpoint_that_goes_while_it_is_sent_is_sent_all_the_same(
    buckets, tmp_path, monkeypatch):
  there, here = url.Objects('s3://b/run'), tmp_path / 'here' / 'checkpoints'

  def save(step):
    (here / str(step)).mkdir(parents=True)
    (here / str(step) / 'data').write_text(str(step))

  copy = mirror.Mirror(there, tmp_path / 'here')
  save(3)
  copy.push()
  write = url.Objects.write

  def slow(self, name, data, **options):
    if name == 'checkpoints/6/data' and (here / '3').exists():  # training goes on
      shutil.rmtree(here / '3')
      shutil.rmtree(here / '6')
      save(9)
    if name == 'checkpoints/9/data':  # until something newer is there
      assert workdir.steps('s3://b/run') == [3, 6]
    return write(self, name, data, **options)

  monkeypatch.setattr(url.Objects, 'write', slow)
  save(6)
  copy.push()
  assert workdir.steps('s3://b/run') == [9]
  (here / '9').rename(here / 'diverged-9')  # set aside: it must not be gone on from
  save(6)
  copy.push()
  assert workdir.steps('s3://b/run') == [6]


def test_a_folder_that_goes_while_it_is_listed_stops_no_sending(buckets, tmp_path,
                                                              monkeypatch):
  """Orbax removes old checkpoints in a thread of its own."""
  there, here = url.Objects('s3://b/run'), tmp_path / 'here'
  (here / 'checkpoints/3/params').mkdir(parents=True)
  (here / 'metrics.jsonl').write_text('of step 3')
  listed = os.scandir

  class Racing(list):
    def __enter__(self):
      return iter(self)

    def __exit__(self, *_):
      pass

    def __next__(self):
      if not self:
        raise StopIteration
      return self.pop(0)

  def scandir(path='.'):
    found = Racing(listed(path))
    child = here / 'checkpoints/3'
    if pathlib.Path(os.fspath(path)).name == 'checkpoints' and child.exists():
      child.rename(tmp_path / 'gone')
    return found

  monkeypatch.setattr(os, 'scandir', scandir)
  mirror.Mirror(there, here).push()
  assert there.read('metrics.jsonl') == b'of step 3' and not workdir.steps('s3://b/run')


def test_the_other_files_are_those_of_a_checkpoint_or_newer(buckets, tmp_path,
                                                          monkeypatch):
  """Also of one that becomes whole while another is sent."""
  there, here, write = url.Objects('s3://b/run'), tmp_path / 'here', url.Objects.write
  metrics_file = here / 'metrics.jsonl'

  def train_to(step):
    (here / 'checkpoints' / str(step)).mkdir(parents=True)
    (here / 'checkpoints' / str(step) / 'data').write_text('x')
    metrics_file.write_text('.' * step)

  def slow(self, name, data, **options):
    if name == 'checkpoints/3/data':
      train_to(6)
    found = write(self, name, data, **options)
    if name.endswith(mirror.MARK):
      assert len(there.read('metrics.jsonl')) >= int(name.split('/')[1])
    return found

  train_to(3)
  monkeypatch.setattr(url.Objects, 'write', slow)
  mirror.Mirror(there, here).push()
  assert workdir.steps('s3://b/run') == [3, 6]


def test_an_upload_that_is_no_more_is_begun_anew(buckets, tmp_path, monkeypatch):
  """Its last answer was lost, and the store knows no such upload when asked again."""
  monkeypatch.setattr(url, '_PAUSE', (0.0, 0.0))
  there, file, put = url.Objects('s3://b/run'), tmp_path / 'large', obstore.put
  file.write_bytes(b'parts')
  lost = iter([True, True, False])

  def failing(*args, **options):
    if next(lost):
      raise FileNotFoundError('404 Not Found: <Code>NoSuchUpload</Code>')
    return put(*args, **options)

  monkeypatch.setattr(obstore, 'put', failing)
  there.write('large', file)
  assert there.read('large') == b'parts'
  file.unlink()
  lost = iter([True])
  with pytest.raises(FileNotFoundError):  # which the next look passes over
    there.write('large', file)


def test_half_of_a_checkpoint_is_never_sent(buckets, tmp_path):
  """What was given up is not copied, and what is being copied is not removed."""
  there, here = url.Objects('s3://b/run'), tmp_path / 'here' / 'checkpoints'
  copy = mirror.Mirror(there, tmp_path / 'here')
  for step in (3, 6):
    (here / str(step) / 'params').mkdir(parents=True)
    (here / str(step) / 'opt_state').mkdir()
  assert copy.holds.may_drop(6)
  (here / '6' / 'opt_state').rmdir()  # its removal is under way
  copy.push()
  assert workdir.steps('s3://b/run') == [3]
  assert copy.holds.take(3) and not copy.holds.may_drop(3)
  copy.holds.free(3)
  assert copy.holds.may_drop(3) and not copy.holds.take(3)
