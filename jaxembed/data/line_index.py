"""Where the rows of a text file stand: byte offsets, cached for large files."""

import array
from collections.abc import Iterator
import csv
import dataclasses
import hashlib
import pathlib

import numpy as np

from jaxembed.data import cache
from jaxembed.data.fields import BadRow

BOM = b'\xef\xbb\xbf'
LONGEST = 1 << 26  # bytes of a row; such a one takes several times that to parse
_CACHED = 1 << 25  # bytes of a file that are worth an index on disk
_CHUNK = 1 << 24  # bytes looked through at a time


@dataclasses.dataclass(frozen=True)
class Cells:
  """How rows are split into cells.

  quoted: cells may stand in quotation marks, and then hold delimiters and line ends
    (CSV, RFC 4180); else cells are what stands between delimiters.
  """

  delimiter: str = '\t'
  quoted: bool = False

  def reader(self, lines):
    """csv.reader of text; a mark that is not closed, or out of place, is an error."""
    csv.field_size_limit(LONGEST)
    return csv.reader(lines, delimiter=self.delimiter, strict=True)


@dataclasses.dataclass(frozen=True)
class Index:
  """Rows of a file that are not blank, 12 bytes each.

  Attributes:
    starts: [N] int64, bytes from the file's start.
    sizes: [N] uint32 bytes, without the LF; at most LONGEST + 1 is told.
    numbers: [N] uint32, of the lines where rows begin, from 1; None: row i is line
      i + 1.
    sha256: of the whole file; '' where it was not computed.
  """

  starts: np.ndarray
  sizes: np.ndarray
  numbers: np.ndarray | None
  sha256: str = ''

  def __len__(self) -> int:
    return len(self.starts)


def index(path: pathlib.Path, cells: Cells | None = None, cache_dir: str = ''
          ) -> Index:
  """The index of a file's lines, or, with quoted `cells`, of its records.

  Of a large file it is made once and then read from the cache without filling memory.

  Raises:
    BadRow: a record's quotation marks do not end.
  """
  if path.stat().st_size < _CACHED:
    return _made(path, cells)
  what = f'rows{ord(cells.delimiter)}' if cells and cells.quoted else 'lines'

  def make(folder: pathlib.Path) -> None:
    found = _made(path, cells)
    for name in ('starts', 'sizes', 'numbers'):
      if getattr(found, name) is not None:
        np.save(folder / f'{name}.npy', getattr(found, name))
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    (folder / 'sha256').write_text(digest)

  try:
    found = cache.folder(path, what, make, cache_dir)
  except cache.BadFile as error:
    if isinstance(error.__cause__, OSError):
      return _made(path, cells)  # nowhere to keep it
    raise
  numbers = found / 'numbers.npy'
  return Index(cache.mapped(found / 'starts.npy'), cache.mapped(found / 'sizes.npy'),
               cache.mapped(numbers) if numbers.exists() else None,
               (found / 'sha256').read_text())


def _made(path: pathlib.Path, cells: Cells | None) -> Index:
  with path.open('rb') as file:
    first = len(BOM) if file.read(3) == BOM else 0
  return (_records(path, first, cells) if cells and cells.quoted else
          _lines(path, first))


def _lines(path: pathlib.Path, first: int) -> Index:
  """Rows that are lines, of text that begins at byte `first`."""
  starts, sizes, numbers = [], [], []
  begin, number = first, 1
  for last, data, at in _chunks(path, first):
    ends = at + np.flatnonzero(data == ord('\n'))
    if last and (not len(ends) or ends[-1] < at + len(data) - 1):
      ends = np.append(ends, at + len(data))
    if not len(ends):
      continue
    some = np.concatenate([[begin], ends[:-1] + 1])
    size = ends - some
    # A line of one byte that is a CR is blank; it may have begun a chunk before.
    one = np.flatnonzero(size == 1)
    blank = size == 0
    blank[one] = [_byte(path, data, at, int(some[i])) == 13 for i in one]
    keep = np.flatnonzero(~blank)
    starts.append(some[keep])
    sizes.append(np.minimum(size[keep], LONGEST + 1).astype(np.uint32))
    numbers.append((number + keep).astype(np.uint32))
    begin, number = int(ends[-1]) + 1, number + len(ends)
  return _index(*(np.concatenate(x) if x else np.empty(0, np.int64)
                  for x in (starts, sizes, numbers)))


def _chunks(path: pathlib.Path, first: int) -> Iterator[tuple[bool, np.ndarray, int]]:
  """(whether it is the last, bytes, where they begin) of a file from `first` on."""
  size = path.stat().st_size
  with path.open('rb') as file:
    file.seek(first)
    for at in range(first, size, _CHUNK):
      data = np.frombuffer(file.read(min(_CHUNK, size - at)), np.uint8)
      yield at + _CHUNK >= size, data, at


def _byte(path: pathlib.Path, data: np.ndarray, at: int, where: int) -> int:
  if where >= at:
    return int(data[where - at])
  with path.open('rb') as file:
    file.seek(where)
    return file.read(1)[0]


def _records(path: pathlib.Path, first: int, cells: Cells) -> Index:
  """Rows that are CSV's records, some of several lines."""
  starts, sizes, numbers = array.array('q'), array.array('q'), array.array('q')
  start, begun = end, line_number = first, 0
  with path.open('rb') as file:
    file.seek(first)

    def lines() -> Iterator[str]:
      nonlocal end, line_number
      for line in file:
        end, line_number = end + len(line), line_number + 1
        yield line.decode('latin-1')  # marks and delimiters are ASCII in UTF-8 too

    source = lines()
    reader = cells.reader(source)
    while True:
      try:
        row = next(reader, None)
      except csv.Error as error:
        if line_number > begun + 1 or end - start <= LONGEST:
          raise BadRow(f'{path}:{begun + 1}: {complaint(error)}') from error
        row, reader = True, cells.reader(source)  # a line that is too long to read
      if row is None:
        break
      if row:
        starts.append(start)
        sizes.append(min(end - start, LONGEST + 1))
        numbers.append(begun + 1)
      start, begun = end, line_number
  return _index(np.array(starts, np.int64), np.array(sizes, np.uint32),
                np.array(numbers, np.uint32))


def complaint(error: csv.Error) -> str:
  """What is wrong with a record, and what to do."""
  said = str(error)
  if 'unexpected end' in said or 'field limit' in said:
    return ('a quotation mark opens a cell of this row and none closes it; close it, '
            'or set quoted=False if marks are part of the text')
  if 'new-line' in said:
    return 'a CR stands inside the line; lines end in LF or CR LF'
  return (f'not CSV ({said}); a quotation mark inside a quoted cell is written twice')


def _index(starts: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> Index:
  plain = not len(numbers) or (
      numbers[0] == 1 and int(numbers[-1]) == len(numbers))
  return Index(starts, sizes, None if plain else numbers)
