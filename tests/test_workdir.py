"""A run's folder, as readers of its model find it."""

import pytest

from jaxembed import workdir


def test_a_folder_without_a_model_is_no_workdir(tmp_path):
  with pytest.raises(FileNotFoundError, match='no jaxembed workdir'):
    workdir.load(tmp_path)
