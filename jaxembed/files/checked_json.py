"""Strict JSON reader for untrusted files, with limits of size and depth.

Standard JSON alone: a key given twice, NaN and Infinity, a byte order mark and half
of a surrogate pair are refused, and so is text beyond limits of size and depth that
no model's files come near.
"""

import json
import math
import os
import pathlib
import re
from typing import Any

from jaxembed.files import folder

# Bytes of a file of settings; tokenizer.json, which holds a vocabulary, has more.
SETTINGS = 10_000_000
TOKENIZER = 200_000_000
# Values (numbers, texts, lists) of one file, and lists within lists.
_MOST_VALUES = 5_000_000
_DEEPEST = 100
_HALF_PAIR = re.compile(rb'\\u[dD][89a-fA-F]')


def read(file: str | os.PathLike, kind: type = dict, *, limit: int = SETTINGS,
         absent: Any = None, finite: bool = True) -> Any:
  """The value that a JSON file holds.

  Args:
    file: a regular file; see `folder.read_bytes`.
    kind: dict or list: what the outermost value must be.
    limit: bytes.
    absent: comes back where there is no such file; None: an error.
    finite: False also takes NaN and Infinity, as Python spells them.

  Raises:
    folder.BadCheckpoint: no such file, or not plain JSON of this kind within the
      limits.
  """
  file = pathlib.Path(file)
  if absent is not None and not os.path.lexists(file):
    return absent
  return parse(folder.read_bytes(file, limit), str(file), kind, finite)


def parse(data: bytes, name: str, kind: type = dict, finite: bool = True) -> Any:
  """The value of JSON text in UTF-8; `name` stands for it in errors.

  Raises:
    folder.BadCheckpoint: as `read`.
  """
  if sum(map(data.count, (b',', b'[', b'{'))) > _MOST_VALUES:
    raise folder.BadCheckpoint(f'{name} holds more than {_MOST_VALUES} values; refused')
  try:
    numbers: Any = {'parse_constant': _number, 'parse_float': _number} if finite else {}
    value = json.loads(data.decode('utf-8'), object_pairs_hook=_object, **numbers)
    if _HALF_PAIR.search(data):
      json.dumps(value, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError:
    raise folder.BadCheckpoint(
        f'{name} is no plain JSON: it has half of a surrogate pair') from None
  except UnicodeDecodeError as e:
    raise folder.BadCheckpoint(
        f'{name} is no JSON in UTF-8 (byte {e.start}: {e.reason})') from None
  except RecursionError:
    raise folder.BadCheckpoint(f'{name} nests lists too deeply; refused') from None
  except ValueError as e:
    raise folder.BadCheckpoint(f'{name} is no plain JSON: {e}') from None
  if not isinstance(value, kind):
    what = {dict: 'object', list: 'list'}[kind]
    raise folder.BadCheckpoint(
        f'{name} holds {folder.short(value)}, not a JSON {what}')
  if _deeper(value, _DEEPEST):
    raise folder.BadCheckpoint(
        f'{name} nests more than {_DEEPEST} lists or objects; refused')
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise ValueError(f'the key {folder.short(twice)} stands twice in one object')
  return found


def _number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{folder.short(text)} is no finite number')
  return value


def _deeper(value: Any, limit: int) -> bool:
  """Whether lists and objects stand within each other more than `limit` times."""
  level = [value]
  for _ in range(limit):
    level = [inner for outer in level
             for inner in (outer.values() if isinstance(outer, dict) else outer)
             if isinstance(inner, dict | list)]
    if not level:
      return False
  return True
