"""Rows that a program holds in memory: lists, data sets, frames and tables."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import hashlib
import json
from typing import Any

from jaxembed.data import fields
from jaxembed.data.fields import BadRow

Rows = Mapping[str, Any]  # name of a source -> its rows
_WANTED = ('give a list of dicts, a dict of columns, a datasets.Dataset, a pandas or '
           'polars frame or an Arrow table')


class MemoryRows(Sequence):
  """Rows of an object with a length, each (columns, 'NAME[row]').

  Nothing is copied: what the program changes later is read changed.

  Raises:
    BadRow: not rows, or a row that is gone.
  """

  def __init__(self, rows: Any, name: str):
    self._rows, self._name = rows, name
    self._len, self._get = _reader(rows, name)

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, i: int) -> tuple[Any, str]:
    if not 0 <= i < self._len:
      raise IndexError(i)
    where = f'{self._name}[{i}]'
    try:
      return fields.row(self._get(i), where), where
    except (IndexError, KeyError) as error:
      raise BadRow(f'{where}: the row is gone ({error!r:.80}); rows must stay as they '
                   'are while a run reads them') from error

  def digest(self) -> bytes:
    """SHA-256 of all rows, whatever holds them and in whatever order of columns."""
    found = hashlib.sha256()
    for i in range(self._len):
      row, _ = self[i]
      text = json.dumps(row, sort_keys=True, default=repr)
      found.update(text.encode() + b'\n')
    return found.digest()


def of(rows: Rows | None, name: str) -> MemoryRows:
  """The rows given for the source `name`.

  Raises:
    FileNotFoundError: there are none.
  """
  if rows is None or name not in rows:
    given = ', '.join(map(repr, rows or ())) or 'none'
    raise FileNotFoundError(
        f"source {name!r}: kind 'memory' takes its rows from rows={{{name!r}: ...}} of "
        f'the call in Python, and given are {given}')
  return MemoryRows(rows[name], name)


def _reader(rows: Any, name: str) -> tuple[int, Callable[[int], Any]]:
  """(how many rows there are, what reads one)."""
  package = type(rows).__module__.partition('.')[0]
  if isinstance(rows, Mapping):
    _refuse_twice(rows, name)
    return _columns(rows, name)
  if package == 'pandas' and hasattr(rows, 'columns'):
    _refuse_twice(rows.columns, name)
    columns = {str(c): rows[c].array for c in rows.columns}
    return len(rows), lambda i: {c: _present(x[i]) for c, x in columns.items()}
  if package == 'pandas' and hasattr(rows, 'array'):  # a Series of rows, by place
    return len(rows), rows.array.__getitem__
  if package == 'polars' and hasattr(rows, 'row'):
    return len(rows), lambda i: rows.row(i, named=True)
  if package == 'pyarrow' and hasattr(rows, 'slice'):
    _refuse_twice(getattr(rows, 'column_names', ()), name)
    return len(rows), lambda i: rows.slice(i, 1).to_pylist()[0]
  if isinstance(rows, str | bytes) or not (
      hasattr(rows, '__len__') and hasattr(rows, '__getitem__')):
    raise BadRow(f'source {name!r}: {type(rows).__name__} has no rows with numbers; '
                 + _WANTED)
  return len(rows), lambda i: rows[i]


def _refuse_twice(columns: Iterable, name: str) -> None:
  """Raises BadRow where two columns have one name, of which a row would keep one."""
  counts = collections.Counter(map(str, columns))
  if twice := next((c for c, n in counts.items() if n > 1), None):
    raise BadRow(f'source {name!r}: the column {twice!r:.60} is named twice; rename '
                 'one')


def _columns(rows: Mapping, name: str) -> tuple[int, Callable[[int], Any]]:
  """Reader of {column: list of cells}."""
  for column, cells in rows.items():
    if isinstance(cells, str) or not isinstance(cells, Sequence):
      raise BadRow(f'source {name!r}: {column!r} is {type(cells).__name__}, not a list '
                   f'of cells; {_WANTED}. Of several splits name one')
  sizes = {column: len(cells) for column, cells in rows.items()}
  if len(set(sizes.values())) > 1:
    raise BadRow(f'source {name!r}: the columns have different lengths ({sizes})')
  size = next(iter(sizes.values()), 0)
  return size, lambda i: {column: cells[i] for column, cells in rows.items()}


def _present(cell: Any) -> Any:
  """A pandas cell; None for what pandas writes where there is none."""
  return None if type(cell).__name__ in ('NAType', 'NaTType') else cell
