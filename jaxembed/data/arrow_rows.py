"""Rows of Parquet and Arrow files, memory-mapped and read when they are asked for."""

from collections.abc import Callable, Iterator, Sequence
import hashlib
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from jaxembed.data import cache, fields
from jaxembed.data.fields import BadRow

_PARQUET, _FILE = b'PAR1', b'ARROW1'
_ROWS = 4096  # of a batch of what is converted


class ArrowRows(Sequence):
  """Rows of one file, each ({column: cell}, 'file:row'), rows counting from 1.

  An Arrow file (Feather too) is mapped into memory as it is. Parquet, and Arrow that is
  compressed, has no access to single rows: it is converted once, into the cache.

  Raises:
    BadRow: not a whole file of this kind, a column that is named twice, or a cell that
      is not UTF-8.
    BadFile: the file changed after it was opened, or is gone.
  """

  def __init__(self, path: str | os.PathLike, cache_dir: str = ''):
    import pyarrow as pa  # takes a tenth of a second, and few runs use it
    self.path = pathlib.Path(path)
    self._was = cache.state(self.path)
    try:
      self._batches = self._open(cache_dir)
    except (pa.ArrowException, OSError) as error:
      raise BadRow(f'{self.path}: not a whole Parquet or Arrow file ({error!s:.200}); '
                   'copy it again') from error
    self._ends = np.cumsum([b.num_rows for b in self._batches], dtype=np.int64)
    names = self._batches[0].schema.names if self._batches else []
    if twice := next((n for n in names if names.count(n) > 1), None):
      raise BadRow(f'{self.path}: the column {twice!r:.60} is named twice; rename one')

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, i: int) -> tuple[dict[str, Any], str]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    cache.check(self.path, self._was)
    part = int(np.searchsorted(self._ends, i, side='right'))
    batch, where = self._batches[part], f'{self.path}:{i + 1}'
    at = i - (int(self._ends[part - 1]) if part else 0)
    row = {}
    for name, column in zip(batch.schema.names, batch.columns):
      try:
        row[name] = fields.plain(column[at].as_py())
      except UnicodeDecodeError as error:
        raise BadRow(f'{where}: field {name!r} is not UTF-8 ({error}); convert the '
                     'file') from error
    return row, where

  def digest(self) -> bytes:
    """SHA-256 of the file, at the speed of the disk."""
    cache.check(self.path, self._was)
    with self.path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').digest()

  def _open(self, cache_dir: str) -> list:
    import pyarrow as pa
    with self.path.open('rb') as file:
      head = file.read(6)
    if head.startswith(_PARQUET):
      import pyarrow.parquet as parquet
      return self._converted(
          cache_dir, lambda: parquet.ParquetFile(self.path).iter_batches(_ROWS))
    before = pa.total_allocated_bytes()
    batches = list(_batches(self.path, head))
    if batches and pa.total_allocated_bytes() - before > batches[0].nbytes // 2:
      del batches  # compressed: what was read is no part of the file
      return self._converted(cache_dir, lambda: _batches(self.path, head))
    return batches

  def _converted(self, cache_dir: str, read) -> list:
    import pyarrow as pa

    def make(folder: pathlib.Path) -> None:
      parts = _whole(read)
      first = next(parts, None)
      if first is None:
        (folder / 'rows.arrow').touch()
        return
      with pa.OSFile(str(folder / 'rows.arrow'), 'wb') as sink, pa.ipc.new_file(
          sink, first.schema) as target:
        for part in itertools.chain([first], parts):
          target.write_batch(part)

    file = cache.folder(self.path, 'rows', make, cache_dir) / 'rows.arrow'
    return list(_batches(file, _FILE)) if file.stat().st_size else []


def _whole(read: Callable[[], Iterator]) -> Iterator:
  """What `read` yields; an error is one of what is read, and not of the cache."""
  import pyarrow as pa
  try:
    yield from read()
  except OSError as error:
    raise pa.ArrowInvalid(str(error)) from error


def _batches(path: pathlib.Path, head: bytes) -> Iterator:
  """The record batches of an Arrow file or stream."""
  import pyarrow as pa
  source = pa.memory_map(str(path))
  if head.startswith(_FILE):
    reader = pa.ipc.open_file(source)
    yield from (reader.get_batch(k) for k in range(reader.num_record_batches))
  else:
    yield from pa.ipc.open_stream(source)
