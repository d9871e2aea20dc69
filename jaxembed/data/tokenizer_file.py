"""Checked reading of an untrusted tokenizer.json with the tokenizers library."""

from collections.abc import Iterator, Mapping
import os
import pathlib
import re
from typing import Any

import tokenizers

from jaxembed.files import checked_json, folder

# The library reserves memory by the largest id; no vocabulary comes near.
_MOST_IDS = 10_000_000
_LONG_NUMBER = re.compile(rb'(?<![.\d])\d{8}')
# Hugging Face writes 1e30 for "no limit".
_NO_LIMIT = 1e9


def read(file: str | os.PathLike) -> tokenizers.Tokenizer:
  """The fast tokenizer of a tokenizer.json.

  Raises:
    folder.BadCheckpoint: no such file, no JSON, ids beyond ten million, or what the
      library itself refuses.
  """
  data = folder.read_bytes(file, checked_json.TOKENIZER)
  # Large vocabularies take a second to parse, and hardly any needs it.
  if _LONG_NUMBER.search(data):
    for number in _ids(checked_json.parse(data, str(file))):
      if number > _MOST_IDS:
        raise folder.BadCheckpoint(
            f'{file}: the id {folder.short(number)} is above {_MOST_IDS}; refused')
  try:
    fast = tokenizers.Tokenizer.from_buffer(data)
    for text in ('a', '', 'a b'):  # parts that do not fit together show here at first
      fast.encode(text)
    return fast
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as e:  # also panics of the library, which are no Exception
    raise folder.BadCheckpoint(
        f'{file} is no tokenizer: {folder.short(str(e), 200)}') from None


def _ids(spec: Any) -> Iterator[int]:
  """Whole numbers below `spec`, wherever they stand."""
  stack = [spec]
  while stack:
    value = stack.pop()
    for inner in value.values() if isinstance(value, dict) else value:
      if isinstance(inner, dict | list):
        stack.append(inner)
      elif type(inner) is int:
        yield inner


def max_length(settings: Mapping[str, Any], file: pathlib.Path) -> int | None:
  """model_max_length of tokenizer_config.json; None: it says none.

  Raises:
    folder.BadCheckpoint: it is no positive whole number.
  """
  value = settings.get('model_max_length')
  if value is None:
    return None
  if type(value) not in (int, float) or value < 1 or value != int(value):
    raise folder.BadCheckpoint(f'{file}: model_max_length is {folder.short(value)}; it '
                               'must be a positive whole number')
  return int(value) if value < _NO_LIMIT else None
