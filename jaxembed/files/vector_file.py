"""Resumable writing of a .npy matrix, part by part, with checksums.

TARGET.partial has the final size from the start, reserved on the disk, and rows are
written to it, never mapped: a full disk is an error, not a signal. After every part
TARGET.progress.json lists the parts that are safely on disk with the checksum of
each, and the work they belong to. The last step renames the file: a TARGET that
exists is complete.
"""

import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
from typing import Any
import warnings

import numpy as np

from jaxembed.files import whole_json


class VectorFile:
  """Rows of a matrix on disk.

  Attributes:
    target: the finished file.
    done: rows that are safely there.
  """

  def __init__(self, target: pathlib.Path, work: dict[str, Any], rows: int, width: int,
               dtype: str):
    """`work`: plain data that says what is computed; other work is not continued."""
    self.target, self.done = target, 0
    self._work = work
    self._partial = target.with_name(target.name + '.partial')
    self._progress = target.with_name(target.name + '.progress.json')
    self._dtype, self._width = np.dtype(dtype), width
    self._header = _header(self._dtype, (rows, width))
    self._size = len(self._header) + rows * self._row
    self._parts: list[list] = []  # [rows, checksum]

  @property
  def _row(self) -> int:
    return self._width * self._dtype.itemsize

  def open(self, overwrite: bool) -> int:
    """Finds what is done of this work, or begins; returns the rows done.

    Raises:
      ValueError: unfinished work of something else, or notes of progress that
        cannot be read, unless `overwrite`.
      OSError: no room on the disk.
    """
    if self._partial.is_dir() or self._progress.is_dir():
      raise IsADirectoryError(f'{self._partial} or {self._progress} is a folder; '
                              'remove it, or choose another target')
    self.target.parent.mkdir(parents=True, exist_ok=True)
    listed = self._listed(overwrite)
    if not self._partial.exists():
      listed = self._lost(listed, 0, f'{self._partial} is gone')
    self._parts = self._verified(listed)
    self.done = sum(rows for rows, _ in self._parts)
    self._reserve()
    return self.done

  def append(self, rows: np.ndarray) -> None:
    """Puts [n, width] behind what is done, and notes it once it is on disk."""
    data = np.ascontiguousarray(rows, self._dtype).tobytes()
    with self._on_disk(), self._partial.open('r+b') as file:
      file.seek(len(self._header) + self.done * self._row)
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    self._parts.append([len(rows), _checksum(data)])
    self.done += len(rows)
    with self._on_disk():
      whole_json.write(self._progress, {'work': self._work, 'parts': self._parts})

  def finish(self) -> None:
    """Gives the file its name."""
    self._partial.replace(self.target)
    self._progress.unlink(missing_ok=True)

  def _listed(self, overwrite: bool) -> list[list]:
    """The parts that the notes of progress list, of this very work."""
    if not self._progress.exists():
      return []
    try:
      stored = json.loads(self._progress.read_bytes())
      work, parts = stored.pop('work'), stored.pop('parts')
      if stored or not isinstance(work, dict) or not all(
          type(rows) is int and rows > 0 and isinstance(check, str)
          for rows, check in parts):
        raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
      if overwrite:
        return []
      raise ValueError(
          f'{self._progress} is damaged or of another version, so the work in '
          f'{self._partial} cannot be continued; overwrite, or remove both') from None
    if work == self._work:
      return parts
    if overwrite:
      return []
    differ = [f'{k} was {work.get(k)!r}, is {v!r}' for k, v in self._work.items()
              if work.get(k) != v]
    raise ValueError(
        f'{self._partial} holds {sum(rows for rows, _ in parts)} rows of other work: '
        f'{"; ".join(differ)}. Call with the same settings to continue it, overwrite, '
        'or choose another target')

  def _verified(self, listed: list[list]) -> list[list]:
    """The first parts whose bytes have their checksums."""
    if not listed:
      return []
    with self._partial.open('rb') as file:
      if file.read(len(self._header)) != self._header:
        return self._lost(listed, 0, f'{self._partial} does not begin as it must')
      for i, (rows, checksum) in enumerate(listed):
        if _checksum(file.read(rows * self._row)) != checksum:
          return self._lost(listed, i, f'{self._partial} is cut or damaged')
    return listed

  def _lost(self, listed: list[list], good: int, why: str) -> list[list]:
    if lost := sum(rows for rows, _ in listed[good:]):
      warnings.warn(f'{why}: {lost} rows that were done are computed again',
                    stacklevel=4)
    return listed[:good]

  def _reserve(self) -> None:
    """Takes all the room that the file will need, so that it is there."""
    with self._on_disk(), self._partial.open('r+b' if self._parts else 'wb') as file:
      if not self._parts:
        file.write(self._header)
      if hasattr(os, 'posix_fallocate'):
        try:
          os.posix_fallocate(file.fileno(), 0, self._size)
        except OSError as error:  # where the file system cannot, writing must do
          if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
            raise
      file.truncate(self._size)

  def _on_disk(self):
    return _Explained(self.target, self._size - self.done * self._row)


class _Explained:
  """Says of an OSError which file it was, and how much room is needed."""

  def __init__(self, target: pathlib.Path, size: int):
    self._target, self._size = target, size

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, OSError):
      free = shutil.disk_usage(self._target.parent).free
      raise OSError(
          error.errno, f'target {self._target} cannot be written '
          f'({os.strerror(error.errno) if error.errno else error}): '
          f'{self._size / 2**20:.1f} MiB are still needed and {free / 2**20:.1f} MiB '
          'are free. Make room and give the command again: what is done is kept'
      ) from error


def _header(dtype: np.dtype, shape: tuple[int, int]) -> bytes:
  """The first bytes of the .npy file."""
  text = io.BytesIO()
  np.lib.format.write_array_header_1_0(text, {
      'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False,
      'shape': shape})
  return text.getvalue()


def _checksum(data: bytes) -> str:
  return hashlib.blake2b(data, digest_size=8).hexdigest()
