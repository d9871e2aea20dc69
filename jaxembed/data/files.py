"""Rows of JSONL and TSV files by number, without holding them parsed.

A plain file is mapped, its line starts are found once, and a row is parsed when
asked for. A .gz file has no random access: it is unpacked into memory when
opened, so a large one is better unpacked on disk.
"""

from collections.abc import Sequence
import glob
import gzip
import json
import mmap
import os
import pathlib
from typing import Any

import numpy as np

from jaxembed.data.records import BadRow


def expand(path: str | os.PathLike, suffixes: Sequence[str]) -> list[pathlib.Path]:
  """The files that a file name, a folder or a glob stands for, sorted.

  Raises:
    FileNotFoundError: there are none.
  """
  path = str(path)
  if os.path.isdir(path):
    found = [p for p in pathlib.Path(path).iterdir()
             if p.name.endswith(tuple(suffixes))]
  else:
    # A name that exists is itself, even with brackets in it.
    names = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    found = [pathlib.Path(p) for p in names if os.path.isfile(p)]
  if not found:
    raise FileNotFoundError(f'{path!r} names no file; give a file, a glob, or a folder '
                            f'with files ending in {", ".join(suffixes)}')
  return sorted(found)


class Lines(Sequence):
  """The lines of a UTF-8 file that are not blank, as (text, 'file:line')."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if self.path.suffix == '.gz':
      try:
        self._data = gzip.decompress(self.path.read_bytes())
      except (EOFError, OSError) as error:
        raise BadRow(f'{self.path}: not a whole gzip file ({error}); copy it '
                     'again') from error
    elif self.path.stat().st_size:
      with self.path.open('rb') as file:
        self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    else:
      self._data = b''
    self._bounds, self._numbers = _line_bounds(self._data)

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> tuple[str, str]:
    start, end = self._bounds[i]
    where = f'{self.path}:{self._numbers[i]}'
    try:
      return self._data[start:end].decode('utf-8').rstrip('\r'), where
    except UnicodeDecodeError as error:
      raise BadRow(f'{where}: not UTF-8 ({error}); convert the file') from error


class JsonLines(Sequence):
  """Rows of one JSONL file, each (parsed value, 'file:line')."""

  def __init__(self, path: str | os.PathLike):
    self._lines = Lines(path)

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, i: int) -> tuple[Any, str]:
    text, where = self._lines[i]
    try:
      return json.loads(text), where
    except json.JSONDecodeError as error:
      raise BadRow(f'{where}: not JSON ({error}); one object per line is '
                   'expected') from error


class TsvRows(Sequence):
  """Rows of one TSV file, each ({column: cell}, 'file:line').

  The first line names the columns. Cells are what stands between tabs: there is
  no quoting, as texts hold quotation marks of their own.
  """

  def __init__(self, path: str | os.PathLike):
    self._lines = Lines(path)
    if not len(self._lines):
      raise BadRow(f'{path}: empty; the first line must name the columns')
    self.columns = tuple(self._lines[0][0].split('\t'))

  def __len__(self) -> int:
    return len(self._lines) - 1

  def __getitem__(self, i: int) -> tuple[dict[str, str], str]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    text, where = self._lines[i + 1]
    cells = text.split('\t')
    if len(cells) != len(self.columns):
      raise BadRow(f'{where}: {len(cells)} cells, but the first line names '
                   f'{len(self.columns)} columns ({", ".join(self.columns)})')
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


def _line_bounds(data) -> tuple[np.ndarray, np.ndarray]:
  """Start and end of every line with something in it, and its number from 1."""
  view = np.frombuffer(data, np.uint8)
  ends = np.flatnonzero(view == ord('\n'))
  if len(view) and view[-1] != ord('\n'):
    ends = np.append(ends, len(view))
  starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
  size = ends - starts
  blank = (size == 0) | ((size == 1) & (view[np.minimum(starts, len(view) - 1)] == 13)
                         if len(view) else False)
  keep = np.flatnonzero(~blank)
  return np.stack([starts, ends], 1)[keep], keep + 1
