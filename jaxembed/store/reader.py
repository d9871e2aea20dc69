"""Reader of a vector store: rows by number, numbers by id."""

from collections.abc import Sequence
import functools
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxembed.files import place
from jaxembed.files.vector_file import checksum
from jaxembed.store import codes, names


@place.remote(reads=('path',))
def open(path: str | os.PathLike) -> 'VectorStore':
  """The vectors of a store's folder, or of a single .npy matrix.

  Raises:
    FileNotFoundError: there is nothing, or the store is unfinished.
    ValueError: it is damaged: a shard is missing, cut or of another shape.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return _single(path)
  if not (path / names.MANIFEST).is_file():
    partial = path.with_name(path.name + '.partial')
    raise FileNotFoundError(
        f'{path} is unfinished ({partial}); give the command that writes it again'
        if partial.exists() else f'{path} holds no vector store (manifest.json)')
  found = names.read_manifest(path)
  rows, size = found['rows'], found['shard_rows']
  files = [names.shard(path, n) for n in range(-(-rows // size))]
  kind, tail = codes.layout(found['dtype'], found['width'])
  parts = [_mapped(file, kind, (min(size, rows - n * size), *tail))
           for n, file in enumerate(files)]
  have = [names.ids(file).is_file() for file in files]
  if any(have) and not all(have):
    raise ValueError(f'{names.ids(files[have.index(False)])} is missing; make the '
                     'store again')
  return VectorStore(path, found['dtype'], found['width'], found['work'], size, parts,
                     files if all(have) else ())


class VectorStore:
  """Vectors on disk, [len, width], read when asked for.

  Slices and `rows` are float32 whatever is stored. A store may be searched and passed
  where a matrix is taken (search.top_k).

  Attributes:
    path: where it lies.
    dtype: how vectors are stored, one of codes.DTYPES.
    width: dimensions of a vector, also called dim.
    work: what made it: fingerprints of model and input, and settings.
  """

  def __init__(self, path: pathlib.Path, dtype: str, width: int, work: dict[str, Any],
               size: int, parts: Sequence[np.ndarray], files: Sequence[pathlib.Path]):
    self.path, self.dtype, self.width, self.work = path, dtype, width, work
    self._size, self._parts, self._files = size, parts, files

  def __len__(self) -> int:
    return sum(len(part) for part in self._parts)

  @property
  def dim(self) -> int:
    """Width of a vector."""
    return self.width

  @property
  def shape(self) -> tuple[int, int]:
    """(vectors, their width), as an array has it."""
    return len(self), self.width

  @property
  def nbytes(self) -> int:
    """Bytes of what is stored."""
    return sum(part.nbytes for part in self._parts)

  def __getitem__(self, rows: slice | int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Rows [start, stop) as float32; the vector of one row; those of a list of rows."""
    if not isinstance(rows, slice):
      found = self.rows(np.atleast_1d(np.asarray(rows)))
      return found[0] if np.ndim(rows) == 0 else found
    return codes.decode(self.stored(rows), self.dtype, self.width)

  def stored(self, rows: slice) -> np.ndarray:
    """Rows [start, stop) as they are stored (codes.layout)."""
    start, stop, step = rows.indices(len(self))
    if step != 1:
      raise ValueError(f'rows are read in their order, and the step is {step}')
    found = []
    while start < stop:
      shard, at = divmod(start, self._size)
      end = min(stop, (shard + 1) * self._size)
      found.append(self._parts[shard][at:at + end - start])
      start = end
    if len(found) == 1:
      return found[0]
    return np.concatenate(found) if found else self._parts[0][:0]

  def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """The vectors of these rows, in any order: [n, width] float32.

    Raises:
      IndexError: there is no such row.
    """
    return codes.decode(self.stored_rows(numbers), self.dtype, self.width)

  def stored_rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """The same, as they are stored."""
    numbers = np.asarray(numbers, np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
      raise IndexError(f'{self.path} has rows 0 to {len(self) - 1}, and '
                       f'{numbers.min()} to {numbers.max()} are asked for')
    first = self._parts[0]
    found = np.empty((len(numbers), *first.shape[1:]), first.dtype)
    shards = numbers // self._size
    for shard in np.unique(shards):
      here = np.flatnonzero(shards == shard)
      here = here[np.argsort(numbers[here], kind='stable')]  # the disk's order
      found[here] = self._parts[shard][numbers[here] - shard * self._size]
    return found

  @property
  def has_ids(self) -> bool:
    """Whether rows have ids of their own; otherwise their numbers serve."""
    return bool(self._files)

  @property
  def ids(self) -> list[str]:
    """The id of every row, all of them in memory."""
    return self.ids_of(np.arange(len(self)))

  def ids_of(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
    """The ids of these rows."""
    numbers = np.asarray(numbers, np.int64)
    if not self.has_ids:
      return [str(n) for n in numbers]
    found = np.empty(len(numbers), object)
    for shard in np.unique(numbers // self._size):
      here = np.flatnonzero(numbers // self._size == shard)
      ids = self._ids[shard][numbers[here] - shard * self._size]
      found[here] = [i.decode() for i in ids.tolist()]
    return found.tolist()

  def find(self, ids: Sequence[str]) -> np.ndarray:
    """The rows of these ids: [n] int64, -1 where there is none."""
    if not self.has_ids:
      known = [int(i) if i.isdecimal() else -1 for i in ids]
      return np.array([n if n < len(self) else -1 for n in known], np.int64)
    table, order = self._sorted_ids
    wanted = np.array([i.encode() for i in ids], dtype=bytes)
    at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return np.where(table[at] == wanted, order[at], -1)

  def verify(self) -> None:
    """Compares every part with its checksum.

    Raises:
      ValueError: a part is not what was written.
    """
    for number, part in enumerate(self._parts):
      file = names.shard(self.path, number)
      at = 0
      for rows, told in json.loads(names.sums(file).read_bytes())['parts']:
        if checksum(part[at:at + rows].tobytes()) != told:
          raise ValueError(f'{file}: rows {at} to {at + rows - 1} are damaged; make '
                           'the store again')
        at += rows

  @functools.cached_property
  def _ids(self) -> list[np.ndarray]:
    return [_ids(names.ids(file), len(part))
            for file, part in zip(self._files, self._parts, strict=True)]

  @functools.cached_property
  def _sorted_ids(self) -> tuple[np.ndarray, np.ndarray]:
    table = np.concatenate(self._ids)
    order = np.argsort(table, kind='stable')
    table = table[order]
    if (twice := np.flatnonzero(table[1:] == table[:-1])).size:
      name = bytes(table[twice[0]]).decode()
      raise ValueError(f'{self.path}: the id {name!r} stands for several rows, so rows '
                       'cannot be found by id')
    return table, order


def _single(path: pathlib.Path) -> VectorStore:
  """A .npy matrix of floats as a store of one shard."""
  try:
    found = np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(f'{path} is no .npy matrix ({error})') from None
  dtype = str(found.dtype)
  if found.ndim != 2 or found.dtype.kind != 'f' or not found.size:
    raise ValueError(f'{path} is no matrix of vectors in floats, but {found.shape} '
                     f'{dtype}')
  return VectorStore(path, dtype, found.shape[1], {}, len(found), [found], ())


def _mapped(file: pathlib.Path, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
  found = _loaded(file)
  if found.dtype != kind or found.shape != shape:
    raise ValueError(f'{file} holds {found.shape} {found.dtype}, not {shape} {kind} as '
                     'the manifest says; make the store again')
  return found


def _ids(file: pathlib.Path, count: int) -> np.ndarray:
  found = _loaded(file)
  if found.dtype.kind != 'S' or found.shape != (count,):
    raise ValueError(f'{file} holds {found.shape} {found.dtype}, not {count} ids; make '
                     'the store again')
  return found


def _loaded(file: pathlib.Path) -> np.ndarray:
  try:
    return np.load(file, mmap_mode='r', allow_pickle=False)
  except FileNotFoundError:
    raise ValueError(f'{file} is missing; put it back, or make the store '
                     'again') from None
  except (ValueError, EOFError) as error:
    raise ValueError(f'{file} is damaged ({error}); make the store again') from None
