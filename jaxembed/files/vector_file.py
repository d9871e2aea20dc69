"""Resumable writing of a .npy array, part by part, with checksums.

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
import math
import os
import pathlib
import shutil
from typing import Any, NoReturn
import warnings

import numpy as np

from jaxembed.files import url, whole_json


class VectorFile:
  """Rows of an array on disk.

  Attributes:
    target: the finished file.
    rows: how many it will have.
    done: rows that are safely there.
    note: what `append` was told with the last of them; None: nothing.
  """

  def __init__(self, target: pathlib.Path, work: dict[str, Any],
               shape: tuple[int, ...], dtype: np.dtype | str):
    """`work`: plain data that says what is computed; other work is not continued."""
    url.local(target, 'write it to a local folder, and copy it there')
    self.target, self.rows, self.done = target, shape[0], 0
    self.note: Any = None
    self._work = work
    self._partial = target.with_name(target.name + '.partial')
    self._progress = target.with_name(target.name + '.progress.json')
    self._dtype = np.dtype(dtype)
    self._row = self._dtype.itemsize * math.prod(shape[1:])  # bytes
    self._header = _header(self._dtype, shape)
    self._size = len(self._header) + self.rows * self._row
    self._parts: list[list] = []  # [rows, checksum]

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
    if len(self._parts) < len(listed):
      self.note = None  # it was told with parts that are lost
    self._reserve()
    return self.done

  def append(self, rows: np.ndarray, note: Any = None) -> None:
    """Puts rows behind what is done, and notes it once they are on disk.

    note: plain data that `note` gives back to whoever continues.
    """
    data = np.ascontiguousarray(rows, self._dtype).tobytes()
    with self._on_disk(), self._partial.open('r+b') as file:
      file.seek(len(self._header) + self.done * self._row)
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    self._parts.append([len(rows), checksum(data)])
    self.done, self.note = self.done + len(rows), note
    told = {} if note is None else {'note': note}
    with self._on_disk():
      whole_json.write(self._progress,
                       {'work': self._work, 'parts': self._parts, **told})

  def finish(self, sums: pathlib.Path | None = None) -> None:
    """Gives the file its name.

    sums: where to keep the work, and the checksums of its parts.
    """
    if sums:
      whole_json.write(sums, {'work': self._work, 'parts': self._parts})
    self._partial.replace(self.target)
    self._progress.unlink(missing_ok=True)

  def _listed(self, overwrite: bool) -> list[list]:
    """The parts that the notes of progress list, of this very work."""
    if not self._progress.exists():
      return []
    try:
      stored = json.loads(self._progress.read_bytes())
      work, parts = stored.pop('work'), stored.pop('parts')
      note = stored.pop('note', None)
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
      self.note = note
      return parts
    if overwrite:
      return []
    refuse_other(f'{self._partial} holds {sum(rows for rows, _ in parts)} rows',
                 work, self._work)

  def _verified(self, listed: list[list]) -> list[list]:
    """The first parts whose bytes have their checksums."""
    if not listed:
      return []
    with self._partial.open('rb') as file:
      if file.read(len(self._header)) != self._header:
        return self._lost(listed, 0, f'{self._partial} does not begin as it must')
      for i, (rows, told) in enumerate(listed):
        if checksum(file.read(rows * self._row)) != told:
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


def refuse_other(what: str, work: dict[str, Any], asked: dict[str, Any]) -> NoReturn:
  """Raises ValueError over unfinished work that is not the one asked for."""
  differ = [f'{k} was {work.get(k)!r}, is {asked.get(k)!r}'
            for k in dict.fromkeys([*asked, *work]) if work.get(k) != asked.get(k)]
  raise ValueError(
      f'{what} of other work: {"; ".join(differ)}. Call with the same settings to '
      'continue it, overwrite, or choose another target')


def checksum(data: bytes) -> str:
  """Hexadecimal digest of a part."""
  return hashlib.blake2b(data, digest_size=8).hexdigest()


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


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
  """The first bytes of the .npy file."""
  text = io.BytesIO()
  np.lib.format.write_array_header_1_0(text, {
      'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False,
      'shape': shape})
  return text.getvalue()
