"""Whole files: the name holds all of the new contents or all of the old ones."""

import json

import pytest

from jaxembed.files import whole_file, whole_json


@pytest.mark.parametrize('mode, data', [('w', 'häuser\n'), ('wb', b'\0\xff')])
def test_takes_the_place_of_a_file_once_it_is_written(tmp_path, mode, data):
  target = tmp_path / 'out.txt'
  target.write_text('old')
  with whole_file.opened(target, mode) as file:
    file.write(data)
    assert target.read_text() == 'old'
  assert target.read_bytes() == (data if mode == 'wb' else data.encode('utf-8'))
  assert [p.name for p in tmp_path.iterdir()] == ['out.txt']


def test_an_error_leaves_what_was_there(tmp_path):
  target = tmp_path / 'out.json'
  whole_json.write(target, {'a': 1})
  with pytest.raises(RuntimeError, match='half way'), (
      whole_file.opened(target)) as file:
    file.write('{"a"')
    raise RuntimeError('half way')
  assert json.loads(target.read_bytes()) == {'a': 1}


def test_what_is_there_is_refused_unless_it_may_be_replaced(tmp_path):
  target = tmp_path / 'out.txt'
  whole_file.refuse_existing(target, overwrite=False)
  target.touch()
  whole_file.refuse_existing(target, overwrite=True)
  with pytest.raises(FileExistsError, match='out.txt exists; name another'):
    whole_file.refuse_existing(target, False, 'name another')
  with pytest.raises(FileExistsError, match='exists'):
    whole_file.refuse_existing(tmp_path, overwrite=True)
