"""Folders go to an S3 server and come back, whatever happens on the way."""

import os

import pytest

from jaxembed.files import mirror, remote_lock, url
from tests.helpers import object_servers

pytest.importorskip('obstore')
pytestmark = pytest.mark.thorough


@pytest.fixture(scope='module')
def server():
  with object_servers.s3() as port:
    yield port


def _behind(monkeypatch, server, **faults):
  found = object_servers.Faults(server, **faults)
  for name, value in object_servers.s3_environment(found.port).items():
    monkeypatch.setenv(name, value)
  return found


def _contents(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes()
          for p in folder.rglob('*') if p.is_file()}


def test_what_goes_through_faults_comes_back_equal(server, tmp_path, monkeypatch):
  faults = _behind(monkeypatch, server, refuse=0.1, wait=0.05, cut=0.01)
  there, here = url.Objects('s3://bucket/run'), tmp_path / 'here'
  for step in range(3, 18, 3):
    for i in range(8):
      file = here / f'checkpoints/{step}/{i}'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(os.urandom(100_000 + i))
  (here / 'large').write_bytes(os.urandom(9 << 20))  # sent and fetched in parts
  (here / 'config.json').write_text('{}')
  with remote_lock.held(there, 'run.lock', 'the run', 'wait'):
    mirror.Mirror(there, here).push()
    back = mirror.Mirror(there, tmp_path / 'back')
    back.pull()
  assert _contents(tmp_path / 'back') == _contents(here)
  assert min(faults.counts.values()) > 0, faults.counts
  assert 'run.lock' not in there.names()


def test_what_will_not_pass_is_told_at_once(server, monkeypatch):
  _behind(monkeypatch, server)
  with pytest.raises(OSError, match='s3://none/run/x: NoSuchBucket'):
    url.Objects('s3://none/run').write('x', b'')
  with pytest.raises(FileNotFoundError, match='s3://bucket/none: there is no such'):
    url.Objects('s3://bucket/none').read()


def test_a_store_that_does_not_answer_is_told_in_time(monkeypatch):
  monkeypatch.setattr(url, 'PATIENCE', 0.5)
  for name, value in object_servers.s3_environment(object_servers.free_port()).items():
    monkeypatch.setenv(name, value)
  with pytest.raises(OSError, match='s3://bucket/run/x: still fails after 0 s'):
    url.Objects('s3://bucket/run').write('x', b'')
