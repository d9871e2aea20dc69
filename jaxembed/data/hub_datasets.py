"""Rows of Hugging Face datasets: saved folders, folders of files, hub ids."""

from collections.abc import Sequence
import pathlib
from typing import Any

from jaxembed.data import cache, fields
from jaxembed.data.fields import BadRow

_SAVED = ('state.json', 'dataset_dict.json')  # what save_to_disk writes


class DatasetRows(Sequence):
  """Rows of one split, each (columns, 'PATH[split]:row'), rows counting from 0.

  A folder that save_to_disk wrote is mapped into memory as it is. Other folders and hub
  ids go through datasets.load_dataset and its own cache.

  Raises:
    ImportError: the package datasets is not installed.
    FileNotFoundError: there is no such folder, hub id, configuration or split.
    BadFile: a file that is read changed after it was opened, or is gone.
  """

  def __init__(self, path: str, subset: str = '', split: str = 'train'):
    try:
      import datasets  # an extra, which takes a second to import
    except ImportError as error:
      raise ImportError("kind 'datasets' needs the package datasets: pip install "
                        'jaxembed[datasets]') from error
    self._rows = _load(datasets, path, subset, split)
    self._where = f'{path}[{split}]'
    self._were = [(file['filename'], cache.state(file['filename']))
                  for file in self._rows.cache_files]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> tuple[dict[str, Any], str]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    if self._were:  # one file a row, in turns
      cache.check(*self._were[i % len(self._were)])
    where = f'{self._where}:{i}'
    try:
      found = self._rows[i]
    except UnicodeDecodeError as error:
      raise BadRow(f'{where}: not UTF-8 ({error})') from error
    return fields.row(found, where), where


def is_saved(folder: pathlib.Path) -> bool:
  """Whether save_to_disk wrote a folder."""
  return any((folder / name).is_file() for name in _SAVED)


def _load(datasets, path: str, subset: str, split: str):
  folder = pathlib.Path(path).expanduser()
  if is_saved(folder):
    if subset:
      raise FileNotFoundError(f'{path} was written by save_to_disk and has no subsets; '
                              f'leave out subset={subset!r}')
    found = _from_disk(datasets, path, str(folder))
    if not isinstance(found, datasets.DatasetDict):
      if split != 'train':
        raise FileNotFoundError(f'{path} holds one dataset without splits; leave out '
                                f'split={split!r}')
      return found
    if split not in found:
      raise FileNotFoundError(f'{path} has no split {split!r}; it has {sorted(found)}')
    return found[split]
  try:
    return datasets.load_dataset(
        str(folder) if folder.exists() else path, subset or None, split=split)
  except (FileNotFoundError, ValueError, ConnectionError,
          datasets.exceptions.DatasetsError) as error:
    said = ' '.join(str(error).split())
    raise FileNotFoundError(
        f'dataset {path!r} (subset {subset or "none"}, split {split!r}) cannot be '
        f'opened: {said:.300}') from error


def _from_disk(datasets, path: str, folder: str):
  """What save_to_disk wrote.

  Raises:
    BadRow: a file is gone or damaged, or there is no row, which it cannot read back.
  """
  try:
    return datasets.load_from_disk(folder)
  except (OSError, ValueError, KeyError, IndexError) as error:
    empty = isinstance(error, IndexError)
    raise BadRow(f'{path}: ' + (
        'the dataset has no rows' if empty else 'a file that save_to_disk wrote is '
        f'gone or damaged ({error!s:.200}); copy the folder again')) from error
