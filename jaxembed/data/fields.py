"""Validation of one field of a row: a text, an id or a number."""

import math
from typing import Any

import numpy as np

ONE_ARRAY = ('A file that is one JSON array is not read: write a line for each of its '
             "entries, for example with jq -c '.[]'")
_LARGEST = 3.4e38  # of float32


class BadRow(ValueError):
  """A row that cannot be used; the message says where, why and what to do."""


class BadFile(BadRow):
  """A file that cannot be read on: gone, changed, or without room for its cache."""


def text(value: Any, name: str, where: str, empty: bool = False) -> str:
  """The text of field `name`, in the row at `where` ('file:line').

  Raises:
    BadRow: not a text, empty (but for `empty`), or with half of a surrogate pair.
  """
  if not isinstance(value, str):
    raise BadRow(f'{where}: field {name!r} is {kind(value)}, not a text')
  if not value.isascii():
    try:
      value.encode('utf-8')
    except UnicodeEncodeError as error:
      raise BadRow(
          f'{where}: field {name!r} holds half of a character at {error.start} '
          f'({value[error.start]!a}, a lone surrogate), which no tokenizer can read; '
          'correct the text, or remove the row') from None
  if not empty and not value.strip():
    raise BadRow(f'{where}: field {name!r} is an empty text; remove the row or the '
                 'entry')
  return value


def identifier(value: Any, name: str, where: str) -> str:
  """A text's own id in the data, '' for none.

  Raises:
    BadRow: neither a text nor a number.
  """
  if value is None:
    return ''
  if value == '' or (isinstance(value, float) and math.isnan(value)):
    return ''
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise BadRow(f'{where}: field {name!r} is {kind(value)}; an id is a text or a '
                 'number')
  return text(str(value), name, where)


def number(value: Any, name: str, where: str) -> float:
  """A field as a number.

  Raises:
    BadRow: it is none, or none that float32 holds.
  """
  try:
    found = float(value)
  except (TypeError, ValueError, OverflowError):
    found = math.nan
  if not abs(found) <= _LARGEST:
    raise BadRow(f'{where}: field {name!r} is {short(value)}, not a finite number')
  return found


def plain(value: Any) -> Any:
  """Numpy's arrays and numbers, and bytes, as lists, numbers and texts; all inside too.

  Raises:
    UnicodeDecodeError: bytes that are not UTF-8.
  """
  if isinstance(value, str | int | float | None):
    return value.item() if isinstance(value, np.generic) else value
  if isinstance(value, dict):
    return {str(key): plain(v) for key, v in value.items()}
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, bytes):
    return value.decode('utf-8')
  return value.item() if isinstance(value, np.generic) else value


def row(value: Any, where: str) -> Any:
  """A row as `plain` has it.

  Raises:
    BadRow: bytes that are not UTF-8, with the field that holds them.
  """
  try:
    return plain(value)
  except UnicodeDecodeError as error:
    cells = value.items() if isinstance(value, dict) else enumerate(value)
    name = next(name for name, cell in cells if not _is_text(cell))
    raise BadRow(f'{where}: field {name!r} is not UTF-8 ({error}); correct the text, '
                 'or remove the row') from error


def _is_text(cell: Any) -> bool:
  try:
    plain(cell)
  except UnicodeDecodeError:
    return False
  return True


def kind(value: Any) -> str:
  """A value's type and beginning, for messages."""
  return f'{type(value).__name__} {short(value)}'


def short(value: Any) -> str:
  """The beginning of a value's spelling, whatever its size and depth."""
  try:
    return f'{value!r:.40}'
  except (RecursionError, ValueError):  # a very long integer has no digits
    return 'of great size'
