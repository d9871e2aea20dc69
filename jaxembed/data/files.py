"""JSONL, CSV and TSV readers with random access to rows, parsed when asked for."""

import bisect
from collections.abc import Sequence
import csv
import glob
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any

from jaxembed.data import fields, line_index
from jaxembed.data.fields import BadRow
from jaxembed.data.line_index import Cells
from jaxembed.data.lines import Lines

__all__ = [
  'Cells',
  'Joined',
  'JsonLines',
  'Lines',
  'TsvLists',
  'TsvRows',
  'expand',
  'parse_json',
]


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


class JsonLines(Sequence):
  """Rows of one JSONL file, each (parsed value, 'file:line')."""

  def __init__(self, path: str | os.PathLike, cache_dir: str = ''):
    self._lines = Lines(path, cache_dir=cache_dir)
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
    return _DECODER.decode(text)
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


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_TABS = Cells()


class TsvLists(Sequence):
  """Rows of one TSV or CSV file without names of columns, each (cells, 'file:line').

  Unasked, cells are what stands between tabs: texts hold quotation marks of their own.

  Raises:
    BadRow: no line, a first line of one cell, or a CR inside one.
  """

  def __init__(self, path: str | os.PathLike, cells: Cells = _TABS,
               cache_dir: str = ''):
    self._lines, self._cells = Lines(path, cells, cache_dir), cells
    self.digest = self._lines.digest
    if not len(self._lines):
      raise BadRow(f'{path}: empty')
    if len(self[0][0]) == 1:
      raise BadRow(f'{self[0][1]}: ' + self._one_cell())

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, i: int) -> tuple[list[str], str]:
    text, where = self._lines[i]
    if self._cells.quoted:
      return self._record(text, where), where
    if '\r' in text:
      raise BadRow(f'{where}: a CR stands inside the line; lines end in LF or CR LF')
    return text.split(self._cells.delimiter), where

  def _record(self, text: str, where: str) -> list[str]:
    try:
      return next(self._cells.reader([text]))
    except csv.Error as error:
      raise BadRow(f'{where}: {line_index.complaint(error)}') from error

  def _one_cell(self) -> str:
    if not self._cells.quoted and self._cells.delimiter == '\t':
      return ('no tab stands in the line; cells are what stands between tabs. Convert '
              'the file if it is CSV, or set its kind')
    text, mark = self._lines[0][0], self._cells.delimiter
    other = next((c for c in ',;\t|' if c != mark and c in text), None)
    return f'no {mark!r} stands in the line' + (
        f'; set delimiter={other!r} if that is what stands between cells' if other
        else '; a row needs two cells')


class TsvRows(Sequence):
  """Rows of one TSV or CSV file (see TsvLists), each ({column: cell}, 'file:line').

  The first line names the columns, or `columns` does in a file without such a line.

  Raises:
    BadRow: no line, a name twice, or a line of more or fewer cells than columns.
  """

  def __init__(self, path: str | os.PathLike, columns: Sequence[str] = (),
               cells: Cells = _TABS, cache_dir: str = ''):
    self._rows = TsvLists(path, cells, cache_dir)
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

  def __init__(self, parts: Sequence[Any]):
    self._parts = list(parts)
    self._ends = list(itertools.accumulate(map(len, self._parts)))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, i: int):
    if not 0 <= i < len(self):
      raise IndexError(i)
    part = bisect.bisect_right(self._ends, i)
    return self._parts[part][i - self._ends[part - 1] if part else i]

  def digest(self) -> bytes:
    """SHA-256 of the parts' digests."""
    return hashlib.sha256(b''.join(p.digest() for p in self._parts)).digest()
