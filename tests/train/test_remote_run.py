"""A run in an object store is the run on the local disk."""

import json
import time

import pytest

import jaxembed
from jaxembed import bundle, config, workdir
from jaxembed.files import url
from jaxembed.train import average, loop, metrics, remote_run, report
from tests.helpers import memory_buckets, tiny_run

obstore = pytest.importorskip('obstore')


@pytest.fixture
def buckets(tmp_path):
  with memory_buckets.opened(tmp_path / 'home'):
    yield


@pytest.mark.thorough
def test_a_run_at_a_url_goes_on_and_is_read(tmp_path, tiny, rows, buckets,
                                            compiled_once):
  cfg = tiny_run.experiment(tiny, rows)
  loop.train(cfg, tmp_path / 'local', log=lambda _: None)
  url.Objects('s3://b/rows.jsonl').write('', rows)
  cfg.stages[0].data.sources[0] = config.SourceConfig(
      name='rows', path='s3://b/rows.jsonl')
  stops = iter([False, False, True])  # after the third step
  for stop in (lambda: next(stops), lambda: False):
    loop.train(cfg, 's3://b/run', log=lambda _: None, should_stop=stop)
    (tmp_path / 'home').rename(tmp_path / f'gone{stop}')  # another host goes on
  assert tiny_run.bits('s3://b/run') == tiny_run.bits(tmp_path / 'local')
  assert metrics.read('s3://b/run')[-1]['train/loss'] == metrics.read(
      tmp_path / 'local')[-1]['train/loss']
  assert workdir.steps('s3://b/run') == [4, 6]
  assert bundle.open('s3://b/run', step=4).step == 4
  assert bundle.open('s3://b/run').source == 's3://b/run'
  with pytest.raises(FileNotFoundError, match=r'no checkpoint 5 under s3:.*4, 6'):
    bundle.open('s3://b/run', step=5)
  report.write('s3://b/run')
  average.average(['s3://b/run'], 's3://b/mean', last=2)
  assert workdir.steps('s3://b/mean') == [6]
  there = url.Objects('s3://b/run').names()
  assert 'report.html' in there and 'run.lock' not in there
  assert json.loads(url.Objects('s3://b/run').read('manifest.json'))['starts'][1]
  model = jaxembed.Embedder.load('s3://b/run')
  assert model.encode(['a text']).shape == (1, model.embedding_dim)


def _save(folder, step):
  part = folder / 'checkpoints' / f'{step}.orbax-checkpoint-tmp-1'
  part.mkdir(parents=True)
  (part / 'data').write_text(str(step))
  part.rename(folder / 'checkpoints' / str(step))


def test_what_is_saved_is_sent_while_the_run_goes_on(tmp_path, buckets):
  there = url.Objects('gs://b/run')
  with remote_run.opened('gs://b/run', lambda _: None) as run:
    (run.folder / 'metrics.jsonl').write_text('of step 3')
    _save(run.folder, 3)
    end = time.monotonic() + 10
    while workdir.steps('gs://b/run') != [3] and time.monotonic() < end:
      time.sleep(0.02)
    assert there.read('metrics.jsonl') == b'of step 3'  # was there before the mark
    with (pytest.raises(BlockingIOError, match='gs://b/run is being written by'),
          remote_run.opened('gs://b/run', lambda _: None)):
      pass
    (run.folder / 'checkpoints' / '6.orbax-checkpoint-tmp-2').mkdir()
    _save(run.folder, 9)
  assert workdir.steps('gs://b/run') == [3, 9]
  assert not [n for n in there.names() if 'tmp' in n or 'lock' in n]


def test_a_store_that_fails_ends_the_run_and_says_where_it_lies(
    tmp_path, buckets, monkeypatch):
  monkeypatch.setattr(url, 'PATIENCE', 0.1)

  def fail(*_, **__):
    raise obstore.exceptions.GenericError('503 Service Unavailable')

  with (pytest.raises(OSError, match=r'still fails .*503.* lies in .*home.*the same '
                      r'command goes on from the last one in gs://b/run'),
        remote_run.opened('gs://b/run', lambda _: None) as run):
    monkeypatch.setattr(obstore, 'put', fail)
    _save(run.folder, 3)
    end = time.monotonic() + 10
    while not run.failed and time.monotonic() < end:
      time.sleep(0.02)
    assert run.failed
  assert (run.folder / 'checkpoints' / '3').exists()
