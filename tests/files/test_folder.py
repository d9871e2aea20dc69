"""No path leaves a stranger's folder, and only files are opened."""

import os

import pytest

from jaxembed.files import folder
from jaxembed.files.folder import BadCheckpoint


@pytest.fixture
def model(tmp_path):
  (tmp_path / 'secret').write_text('secret')
  (tmp_path / 'model' / 'sub').mkdir(parents=True)
  (tmp_path / 'model' / 'sub' / 'file').write_text('fine')
  (tmp_path / 'model' / 'out').symlink_to('../secret')
  (tmp_path / 'model' / 'up').symlink_to('..')
  (tmp_path / 'model' / 'loop').symlink_to('loop')
  return tmp_path / 'model'


@pytest.mark.parametrize('name', [
    '../secret', 'sub/../../secret', '/etc/passwd', 'out', 'up/secret', 'a\0b',
    'sub\\file', 5, None, ['sub'], 'x' * 5000])
@pytest.mark.parametrize('root', ['.', './', 'sub/..', '{}', '{}/sub/..'])
def test_names_that_leave_are_refused(model, monkeypatch, root, name):
  monkeypatch.chdir(model)
  with pytest.raises(BadCheckpoint, match='refused'):
    folder.inside(root.format(model), name)


@pytest.mark.parametrize('name', ['', '.', 'sub', 'sub/file', './sub/file', 'absent'])
def test_names_that_stay_are_found(model, monkeypatch, name):
  monkeypatch.chdir(model)
  for root in ('.', model):
    found = os.path.realpath(folder.inside(root, name))
    assert found == os.path.normpath(os.path.join(model, name))


def test_the_hub_cache_links_to_its_store(tmp_path):
  cache = tmp_path / 'models--org--name'
  (cache / 'blobs').mkdir(parents=True)
  (cache / 'blobs' / 'abc').write_text('{}')
  snapshot = cache / 'snapshots' / 'rev'
  (snapshot / '1_Pooling').mkdir(parents=True)
  (snapshot / '1_Pooling' / 'config.json').symlink_to('../../../blobs/abc')
  (snapshot / 'out').symlink_to('../../../elsewhere')
  file = folder.inside(snapshot, '1_Pooling/config.json')
  assert folder.read_bytes(file, 10) == b'{}'
  with pytest.raises(BadCheckpoint, match='lies outside'):
    folder.inside(snapshot, 'out')


def test_only_regular_files_of_the_folder_are_read(model):
  os.mkfifo(model / 'pipe')  # opened plainly it would wait for a writer for ever
  for name, why in (('pipe', 'no regular file'), ('sub', 'no regular file'),
                    ('out', 'link out of its folder'), ('absent', 'cannot be read'),
                    ('loop', 'cannot be read'), ('sub/file', 'more than the 3 bytes')):
    with pytest.raises(BadCheckpoint, match=why):
      folder.read_bytes(model / name, 3)


def test_values_in_messages_are_short():
  for value in ('x' * 10**7, [0] * 10**6, {'a': ['b' * 10**6]}, 10**10000, {'a': 1}):
    assert len(folder.short(value)) <= 80
  assert folder.short('a\nb') == "'a\\nb'"


def test_a_link_that_leads_out_is_told_from_one_that_stays(model):
  (model / 'stays').symlink_to('sub/file')
  found = {name: folder.leads_out(model / name) for name in ('sub', 'stays', 'out')}
  assert found == {'sub': False, 'stays': False, 'out': True}
