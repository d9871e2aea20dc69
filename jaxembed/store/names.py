"""Names of the files of a vector store, and its manifest."""

import json
import pathlib
from typing import Any

MANIFEST = 'manifest.json'
FORMAT, VERSION = 'jaxembed vectors', 1
_KEYS = {'format', 'version', 'rows', 'width', 'dtype', 'shard_rows', 'work'}


def shard(folder: pathlib.Path, number: int) -> pathlib.Path:
  """The vectors of a shard."""
  return folder / f'shard-{number:05d}.npy'


def ids(vectors: pathlib.Path) -> pathlib.Path:
  """The ids of a shard's rows."""
  return vectors.with_suffix('.ids.npy')


def sums(vectors: pathlib.Path) -> pathlib.Path:
  """The checksums of a shard's parts."""
  return vectors.with_suffix('.sums.json')


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of a store, checked.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of a later version.
  """
  file = folder / MANIFEST
  try:
    found = json.loads(file.read_bytes())
    if found['format'] != FORMAT:
      raise ValueError
    version = found['version']
    if version == VERSION and (set(found) != _KEYS or not isinstance(
        found['work'], dict) or not all(
            type(found[name]) is int and found[name] > 0
            for name in ('rows', 'width', 'shard_rows'))):
      raise ValueError
  except (ValueError, KeyError, TypeError, RecursionError):
    raise ValueError(f'{file} is damaged, or not that of a vector store; make the '
                     'store again') from None
  if version != VERSION:
    raise ValueError(f'{file} is of version {version}, and {VERSION} is what this '
                     'release reads; take a later release')
  return found
