"""Rows of a TensorFlow Datasets dataset, read without TensorFlow."""

from collections.abc import Sequence
import os
from typing import Any

from jaxembed.data import cache, fields


class TfdsRows(Sequence):
  """Rows of one split of a prepared dataset, each (columns, 'name[split]:row').

  The dataset must be stored as array_record, the random-access format.

  Raises:
    BadFile: a file that is read changed after it was opened, or is gone.
  """

  def __init__(self, name: str, split: str, data_dir: str = ''):
    """Opens it; nothing is downloaded.

    Raises:
      FileNotFoundError: it is not prepared here.
    """
    # Imported here: it takes a second, and few runs use it.
    import tensorflow_datasets as tfds
    try:
      self._rows: Any = tfds.data_source(name, split=split, data_dir=data_dir or None,
                                    download=False)
    except (AssertionError, tfds.core.DatasetNotFoundError) as error:
      raise FileNotFoundError(
          f'dataset {name!r} is not prepared in {data_dir or "the default folder"}; '
          f"tfds.builder({name!r}, file_format='array_record').download_and_prepare() "
          'does it') from error
    self._where = f'{name}[{split}]'
    self._were = [(file, cache.state(file)) for file in map(
        os.fspath, self._rows.dataset_info.splits[split].filepaths)]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> tuple[dict[str, Any], str]:
    where = f'{self._where}:{i}'
    cache.check(*self._were[i % len(self._were)])  # one file a row, in turns
    row = fields.row(self._rows[i], where)
    return {name: _listed(value) for name, value in row.items()}, where


def _listed(value: Any) -> Any:
  """A list of objects, which TFDS stores as an object of lists."""
  if not isinstance(value, dict) or not value or not all(
      isinstance(v, list) for v in value.values()):
    return value
  return [dict(zip(value, cells)) for cells in zip(*value.values())]
