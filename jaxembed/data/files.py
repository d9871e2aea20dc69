"""JSONL and TSV readers with random access to rows, which are parsed when asked for.

Of a plain file the line starts are found once, and a row is read and parsed when
asked for; one that changes meanwhile is refused. A .gz file has no random access: it
is unpacked into memory when opened, so a large one is better unpacked on disk.
"""

from collections.abc import Callable, Sequence
import glob
import gzip
import hashlib
import json
import os
import pathlib
from typing import Any
import zlib

import numpy as np

from jaxembed.data import fields
from jaxembed.data.fields import BadRow

_BOM = b'\xef\xbb\xbf'
_GZIP = b'\x1f\x8b'
_OTHERS = {b'\x28\xb5\x2f\xfd': 'zstd', b'PK\x03\x04': 'zip', b'PAR1': 'Parquet',
           b'BZh': 'bzip2', b'\xfd7zX': 'xz', b'ARRO': 'Arrow'}
_LONGEST_LINE = 1 << 28  # bytes; such a line takes several times that to parse
# Gzip files are unpacked to at most so many times their size, or so many bytes.
_MOST_TIMES, _SMALL = 100, 1 << 28
_CHUNK = 1 << 26  # bytes looked through at a time


def expand(path: str | os.PathLike, suffixes: Sequence[str]) -> list[pathlib.Path]:
  """The files that a file name, a folder or a glob stands for, sorted.

  Raises:
    FileNotFoundError: there are none.
  """
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    found = [p for p in pathlib.Path(path).iterdir()
             if p.name.endswith(tuple(suffixes)) and p.is_file()]
  else:
    # A name that exists is itself, even with brackets in it.
    names = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    found = [pathlib.Path(p) for p in names if os.path.isfile(p)]
  if not found:
    raise FileNotFoundError(f'{path!r} names no file; give a file, a glob, or a folder '
                            f'with files ending in {", ".join(suffixes)}')
  return sorted(found)


class Lines(Sequence):
  """The lines of a UTF-8 file that are not blank, as (text, 'file:line').

  Lines end in LF or CR LF. A byte order mark in front of the file is left out.

  Raises:
    BadRow: not a whole gzip file, not UTF-8, a line that is too long, or a file that
      changed after it was opened.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self._read, data = _opened(self.path)
    head = bytes(data[:4])
    _refuse_other_formats(head, self.path)
    self._bounds, self._numbers = _line_bounds(
        data, len(_BOM) if head.startswith(_BOM) else 0)
    if len(self) == 1 and b'\r' in self._read(*self._bounds[0]).rstrip(b'\r\n'):
      raise BadRow(f'{self.path}: lines end in CR alone; convert them to LF, for '
                   "example with tr '\\r' '\\n'")

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> tuple[str, str]:
    start, end = self._bounds[i]
    where = f'{self.path}:{self._numbers[i]}'
    if end - start > _LONGEST_LINE:
      raise BadRow(f'{where}: a line of {end - start} bytes; at most {_LONGEST_LINE} '
                   'are read. Remove it, or split its texts')
    try:
      text = self._read(start, end).decode('utf-8').rstrip('\r')
    except UnicodeDecodeError as error:
      raise BadRow(f'{where}: not UTF-8 ({error}); convert the file') from error
    if text.startswith('\ufeff'):
      raise BadRow(f'{where}: a byte order mark stands inside the file, as where files '
                   'were joined; remove it')
    return text, where

  def digest(self) -> bytes:
    """SHA-256 of the file, at the speed of the disk."""
    with self.path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').digest()


class JsonLines(Sequence):
  """Rows of one JSONL file, each (parsed value, 'file:line')."""

  def __init__(self, path: str | os.PathLike):
    self._lines = Lines(path)
    self.digest = self._lines.digest

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, i: int) -> tuple[Any, str]:
    text, where = self._lines[i]
    return parse_json(text, where), where


def parse_json(text: str, where: str) -> Any:
  """The value of one line of JSON; `where` is 'file:line', for messages.

  NaN and infinities are read, as other writers put them into columns of no concern.

  Raises:
    BadRow: it is not JSON, an object has a key twice, or it nests too deeply.
  """
  try:
    return json.loads(text, object_pairs_hook=_object)
  except RecursionError:
    raise BadRow(f'{where}: lists or objects nest too deeply; remove the row') from None
  except ValueError as error:
    whole = text.lstrip().startswith('[')
    raise BadRow(f'{where}: not JSON ({error!s:.200}); one object per line is expected'
                 + (f'. {fields.ONE_ARRAY}' if whole else '')) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'the key {twice!r:.60} comes twice in one object')
  return found


class TsvLists(Sequence):
  """Rows of one TSV file without names of columns, each (cells, 'file:line').

  Cells are what stands between tabs: there is no quoting, as texts hold quotation
  marks of their own.

  Raises:
    BadRow: no line, a first line of one cell, or a CR inside one.
  """

  def __init__(self, path: str | os.PathLike):
    self._lines = Lines(path)
    self.digest = self._lines.digest
    if not len(self._lines):
      raise BadRow(f'{path}: empty')
    if len(self[0][0]) == 1:
      raise BadRow(f'{self[0][1]}: no tab stands in the line; cells are what stands '
                   'between tabs. Convert the file if it is CSV')

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, i: int) -> tuple[list[str], str]:
    text, where = self._lines[i]
    if '\r' in text:
      raise BadRow(f'{where}: a CR stands inside the line; lines end in LF or CR LF')
    return text.split('\t'), where


class TsvRows(Sequence):
  """Rows of one TSV file (see TsvLists), each ({column: cell}, 'file:line').

  The first line names the columns, or `columns` does in a file without such a line.

  Raises:
    BadRow: no line, a name twice, or a line of more or fewer cells than columns.
  """

  def __init__(self, path: str | os.PathLike, columns: Sequence[str] = ()):
    self._rows = TsvLists(path)
    self.digest = self._rows.digest
    self._first = 0 if columns else 1
    self._named_by = 'columns' if columns else 'the first line'
    self.columns = tuple(columns) or tuple(self._rows[0][0])
    if len(set(self.columns)) < len(self.columns):
      twice = next(c for c in self.columns if self.columns.count(c) > 1)
      raise BadRow(f'{path}:1: the column {twice!r:.60} is named twice; rename one')

  def __len__(self) -> int:
    return len(self._rows) - self._first

  def __getitem__(self, i: int) -> tuple[dict[str, str], str]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    cells, where = self._rows[i + self._first]
    if len(cells) != len(self.columns):
      raise BadRow(f'{where}: {len(cells)} cells, but {self._named_by} names '
                   f'{len(self.columns)} columns ({", ".join(self.columns)!s:.200})')
    if tuple(cells) == self.columns:
      raise BadRow(f'{where}: the names of the columns again, as where files were '
                   'joined; remove the line')
    return dict(zip(self.columns, cells)), where


class Joined(Sequence):
  """Several sequences as one."""

  def __init__(self, parts: Sequence[Sequence]):
    self._parts = list(parts)
    self._ends = np.cumsum([len(p) for p in self._parts])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, i: int):
    if not 0 <= i < len(self):
      raise IndexError(i)
    part = int(np.searchsorted(self._ends, i, side='right'))
    first = int(self._ends[part - 1]) if part else 0
    return self._parts[part][i - first]

  def digest(self) -> bytes:
    """SHA-256 of the parts' digests."""
    return hashlib.sha256(b''.join(p.digest() for p in self._parts)).digest()


class _Plain:
  """Parts of a file that stays as it was.

  It is read and not mapped: a page that is gone from a mapped file ends the process.
  It is opened for each part: a source may have more files than can be open.
  """

  def __init__(self, path: pathlib.Path):
    self._path, self._was = path, _state(path.stat())

  def __call__(self, start: int, end: int) -> bytes:
    try:
      file = os.open(self._path, os.O_RDONLY)
    except FileNotFoundError:
      raise BadRow(f'{self._path}: the file is gone; put it back, or give its new '
                   'path, and the same command goes on') from None
    try:
      found = os.pread(file, int(end - start), int(start))
      if _state(os.fstat(file)) != self._was:
        raise BadRow(f'{self._path}: the file changed after it was opened; give the '
                     'same command again once it is as it should be')
    finally:
      os.close(file)
    return found


def _state(now: os.stat_result) -> tuple[int, int]:
  return now.st_size, now.st_mtime_ns


def _opened(path: pathlib.Path) -> tuple[Callable[[int, int], bytes], np.ndarray]:
  """(reader of a part, all bytes to look through now) of a file.

  Of a gzip file, whatever its name, what it holds.
  """
  packed = path.suffix == '.gz'
  if not packed and path.stat().st_size:
    with path.open('rb') as file:
      packed = file.read(2) == _GZIP
  if packed:
    data = _unpacked(path)
    return lambda start, end: data[start:end], np.frombuffer(data, np.uint8)
  read = _Plain(path)
  size = path.stat().st_size
  return read, np.memmap(path, np.uint8, 'r') if size else np.empty(0, np.uint8)


def _unpacked(path: pathlib.Path) -> bytearray:
  found, most = bytearray(), max(_SMALL, _MOST_TIMES * path.stat().st_size)
  try:
    with gzip.open(path) as file:
      while part := file.read(_CHUNK >> 4):
        found += part
        if len(found) > most:
          raise BadRow(f'{path}: unpacks to more than {_MOST_TIMES} times its size; '
                       'unpack it on disk if it is what it should be')
  except (EOFError, OSError, zlib.error) as error:
    with path.open('rb') as file:
      if (head := file.read(2)) and not _GZIP.startswith(head):
        raise BadRow(f'{path}: no gzip file, whatever its name says; rename it, or '
                     'copy it again') from error
    raise BadRow(f'{path}: not a whole gzip file ({error}); copy it again') from error
  if not path.stat().st_size:
    raise BadRow(f'{path}: not a whole gzip file (it is empty); copy it again')
  return found


def _refuse_other_formats(head: bytes, path: pathlib.Path) -> None:
  for magic, name in _OTHERS.items():
    if head.startswith(magic):
      raise BadRow(f'{path}: a {name} file, which is not read; unpack or convert it')
  if head[:2] in (b'\xff\xfe', b'\xfe\xff') or b'\0' in head:
    raise BadRow(f'{path}: UTF-16 or UTF-32, or no text at all; convert it to UTF-8, '
                 'for example with iconv -f UTF-16 -t UTF-8')


def _line_bounds(view: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
  """Start and end of every line with something in it, and its number from 1.

  Text begins at byte `first`.
  """
  ends = np.concatenate([np.empty(0, np.int64)] + [
      at + np.flatnonzero(view[at:at + _CHUNK] == ord('\n'))
      for at in range(0, len(view), _CHUNK)])
  if len(view) and view[-1] != ord('\n'):
    ends = np.append(ends, len(view))
  starts = np.concatenate([[first], ends[:-1] + 1]) if len(ends) else ends
  size = ends - starts
  blank = (size == 0) | ((size == 1) & (view[np.minimum(starts, len(view) - 1)] == 13)
                         if len(view) else False)
  keep = np.flatnonzero(~blank)
  return np.stack([starts, ends], 1)[keep], keep + 1
