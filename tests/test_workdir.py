"""A run's folder, as readers of its model find it."""

import pytest

from jaxembed import workdir


def test_a_folder_without_a_model_is_no_workdir(tmp_path):
  with pytest.raises(FileNotFoundError, match='no jaxembed workdir'):
    workdir.load(tmp_path)


def test_one_run_at_a_time_and_none_in_a_file(tmp_path):
  folder = tmp_path / 'run'
  for _ in range(2):  # left, it is free again
    with (workdir.alone(folder),
          pytest.raises(ValueError, match='run is under way in .*/run; wait'),
          workdir.alone(folder)):
      pass
  with pytest.raises(KeyError), workdir.alone(folder):
    raise KeyError
  with workdir.alone(folder):
    pass
  (tmp_path / 'file').write_text('')
  with (pytest.raises(NotADirectoryError, match='file is a file; choose another'),
        workdir.alone(tmp_path / 'file')):
    pass
