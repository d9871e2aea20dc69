"""Folders go to servers of S3 and of Google Cloud Storage and come back, whatever
happens on the way."""

import os

import pytest

from jaxembed.files import mirror, remote_lock, url
from tests.helpers import gcs_server, memory_buckets, object_servers

obstore = pytest.importorskip('obstore')
pytestmark = pytest.mark.thorough


@pytest.fixture(scope='module', params=['s3', 'gs'])
def store(request):
  """(scheme, port) of a server that has one bucket."""
  opened = object_servers.s3 if request.param == 's3' else gcs_server.opened
  with opened() as port:
    yield request.param, port


@pytest.fixture
def behind(store, monkeypatch, tmp_path):
  """A function that puts faults before the server, and clients before the faults."""
  scheme, port = store

  def put(**chances):
    faults = object_servers.Faults(port, **chances)
    for name, value in _environment(scheme, faults.port, tmp_path).items():
      monkeypatch.setenv(name, value)
    return faults

  return put


@pytest.fixture
def memory(tmp_path):
  with memory_buckets.opened(tmp_path / 'home'):
    yield


def _environment(scheme, port, folder):
  return (object_servers.s3_environment(port) if scheme == 's3'
          else gcs_server.environment(port, folder))


def _contents(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes()
          for p in folder.rglob('*') if p.is_file()}


def test_what_goes_through_faults_comes_back_equal(store, behind, tmp_path):
  faults = behind(refuse=0.1, wait=0.05, cut=0.01)
  there, here = url.Objects(f'{store[0]}://bucket/run'), tmp_path / 'here'
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


def test_what_will_not_pass_is_told_at_once(store, behind):
  behind()
  scheme, _ = store
  with pytest.raises(OSError, match=f'{scheme}://none/run/x: NoSuchBucket: .* create'):
    url.Objects(f'{scheme}://none/run').write('x', b'')
  with pytest.raises(FileNotFoundError, match=f'{scheme}://bucket/none: there is no'):
    url.Objects(f'{scheme}://bucket/none').read()


def test_one_of_two_that_create_an_object_has_it(store, behind):
  behind()
  there = url.Objects(f'{store[0]}://bucket/once')
  there.write('lock', b'first', create=True)
  with pytest.raises(FileExistsError, match='once/lock: is there already'):
    there.write('lock', b'second', create=True)
  assert there.read('lock') == b'first'
  there.write('lock', b'third')
  there.remove('lock')
  there.remove('lock')  # which need not be there
  assert there.head('lock') is None
  there.write('lock', b'fourth', create=True)


def test_many_names_are_listed_page_by_page(store, behind):
  behind()
  there = url.Objects(f'{store[0]}://bucket/many')
  names = {f'folder {i % 3}/ä&<{i:03}' for i in range(120)}
  for name in names:
    there.write(name, name.encode())
  url.Objects(f'{store[0]}://bucket/many-others').write('x', b'')
  assert there.names().keys() == names
  assert all(found.size == len(name.encode()) for name, found in there.names().items())


@pytest.mark.parametrize('scheme', ['s3', 'gs'])
def test_a_store_that_does_not_answer_is_told_in_time(monkeypatch, scheme, tmp_path):
  monkeypatch.setattr(url, 'PATIENCE', 0.5)
  for name, value in _environment(
      scheme, object_servers.free_port(), tmp_path).items():
    monkeypatch.setenv(name, value)
  with pytest.raises(OSError, match=f'{scheme}://bucket/run/x: still fails after'):
    url.Objects(f'{scheme}://bucket/run').write('x', b'')


def test_an_account_that_cannot_be_read_is_told_with_what_to_set(monkeypatch, tmp_path):
  monkeypatch.setenv('GOOGLE_SERVICE_ACCOUNT', str(tmp_path / 'none.json'))
  with pytest.raises(OSError, match='gs://bucket: no account that .* set GOOGLE_APPL'):
    url.Objects('gs://bucket/run')


@pytest.mark.parametrize('said,remedy', [
    ('<Code>AccessDenied</Code>', 'no account that may do that: set AWS_ACCESS'),
    ('<Code>RequestTimeTooSkewed</Code>', "RequestTimeTooSkewed: .* clock is wrong"),
    ('invalid_grant: Token must be in a reasonable timeframe', 'clock is wrong'),
    ('redirect without LOCATION: an incorrectly configured region', 'set AWS_REGION'),
    ('<Code>InvalidBucketName</Code>', 'no bucket can have that name')])
def test_what_a_store_refuses_has_a_remedy(memory, monkeypatch, said, remedy):
  def refused(*_, **__):
    raise obstore.exceptions.GenericError(f'Server returned 403 Forbidden, {said}')

  monkeypatch.setattr(obstore, 'put', refused)
  with pytest.raises(OSError, match=f's3://bucket/x: .*{remedy}'):
    url.Objects('s3://bucket').write('x', b'')


def test_a_disk_without_room_is_named_and_left_clean(memory, tmp_path):
  there = url.Objects('s3://bucket/run')
  there.write('large', b'x' * 1000)

  target = tmp_path / 'here' / 'large'
  target.parent.mkdir()
  (target.parent / 'large.tmp').symlink_to('/dev/full')
  with pytest.raises(OSError, match='s3://bucket/run/large: the disk has no room for '
                     f'its copy in {target.parent}; make room, or set XDG_CACHE_HOME'):
    there.fetch('large', target, 1000)
  assert not list(target.parent.iterdir())
