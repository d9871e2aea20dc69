"""What the tests of training share: compiled updates, rows."""

import pathlib

import pytest

from tests.helpers import tiny_run


@pytest.fixture(scope='module')
def compiled_once():
  """Runs of equal stages in a module share one compiled update."""
  with tiny_run.shared_updates():
    yield


@pytest.fixture(scope='module')
def rows(tmp_path_factory) -> pathlib.Path:
  """A file of forty short pairs."""
  return tiny_run.write_rows(tmp_path_factory.mktemp('rows') / 'train.jsonl')
