"""Validation of the texts that a caller gives, before anything is computed."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np


def as_texts(inputs: str | Iterable[str]) -> tuple[list[str], bool]:
  """(texts in order, whether `inputs` is one text alone).

  Lists, tuples, pandas Series, arrays of numpy and pyarrow, columns of datasets and
  iterators are taken. What has no order of texts is refused: a set, a mapping, a
  table.

  Raises:
    TypeError: no texts; names the first that is none.
    ValueError: a text that is not Unicode.
  """
  if isinstance(inputs, str):
    check_text(inputs, 'the text')
    return [inputs], True
  kind = type(inputs).__name__
  if isinstance(inputs, bytes | bytearray) or not isinstance(inputs, Iterable):
    raise TypeError(f'inputs is {kind}; give a str or a list of str')
  if isinstance(inputs, Mapping):
    raise TypeError(f'inputs is {kind}, which encodes to nothing in particular; give '
                    'the texts themselves, for example list(inputs.values())')
  if isinstance(inputs, Set):
    raise TypeError(f'inputs is {kind}, whose order means nothing, so vectors could '
                    'not be told apart; give sorted(inputs)')
  if hasattr(inputs, 'columns') or getattr(inputs, 'ndim', 1) != 1:
    raise TypeError(f'inputs is {kind} of several columns or dimensions; give one '
                    "column of texts, for example table['text']")
  column: Any = inputs
  texts = list(column.to_pylist() if hasattr(column, 'to_pylist') else column)
  for i, text in enumerate(texts):
    check_text(text, f'text {i}')
  return texts, False


def check_text(text: Any, what: str) -> None:
  """Raises unless `text` is a str that can be written as UTF-8."""
  if not isinstance(text, str):
    raise TypeError(f'{what} is {type(text).__name__} {text!r:.60}, not str')
  if text.isascii():
    return
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise ValueError(
        f'{what} is not Unicode: character {error.start} is {text[error.start]!a}, '
        "half of a surrogate pair (half an emoji from JSON's \\u escapes); repair it "
        "with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
    ) from None


def check_count(name: str, value: object) -> None:
  """Raises ValueError unless `value` is a whole number from 1 on."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
    raise ValueError(f'{name} {value!r} is no whole number from 1 on')


def check_dim(dim: Any, most: int) -> int:
  """The number of dimensions to keep of `most`; ValueError if it is none."""
  if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or not (
      1 <= dim <= most):
    raise ValueError(f'truncate_dim is {dim!r}, but the model gives {most} dimensions; '
                     'choose 1 to that')
  return int(dim)
