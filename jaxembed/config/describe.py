"""Descriptions of configuration fields: type, default and meaning, out of the source.

A field is described where it is defined: in the class's docstring ('name: text', or
'name, other: text' for several), in the comment above it, in the comment behind it, or
in several of these. A comment that begins with '##' is a heading and belongs to none.
"""

from collections.abc import Iterator
import dataclasses
import functools
import inspect
import re
import textwrap
import typing
from typing import Any

from jaxembed.config.experiment import Config, ModelSpec
from jaxembed.config.model import LoraConfig, ModelConfig, PoolingConfig

# Fields of ModelSpec ask for what these hold under the same name, or behind a prefix.
_ASKED = ((ModelConfig, ''), (PoolingConfig, ''), (LoraConfig, 'lora_'))
_NAMES = re.compile(r'(\w+(?:, \w+)*): (.*)')
_CHOICES = re.compile(r'\w+(?: \| \w+)+')
_FIELD = re.compile(r'  (\w+): [^#]*(?:#\s*(.*))?')


@dataclasses.dataclass(frozen=True)
class FieldDoc:
  """What a person needs to know to set one field."""

  name: str
  type: str  # as annotated: 'int', 'tuple[str, ...]', 'LossConfig'
  default: str  # as Python writes it; 'required' where there is none
  text: str  # one line


def fields(cls: type) -> tuple[FieldDoc, ...]:
  """Every field of a configuration class, in order, with its description.

  Inherited fields come last. A field that nothing describes has the text ''.
  """
  texts = _texts(cls)
  return tuple(
      FieldDoc(f.name, _type(f.type), _default(f), texts.get(f.name, ''))
      for f in sorted(dataclasses.fields(cls),
                      key=lambda f: f.name not in cls.__annotations__))


def summary(cls: type) -> str:
  """What the class is, in words: its docstring without the fields' descriptions."""
  return _docstring(cls)[0]


def classes(root: type = Config) -> Iterator[Any]:
  """`root` and the configuration classes in its fields, each once, outermost first."""
  waiting, seen = [root], set()
  while waiting:
    cls = waiting.pop(0)
    if cls in seen:
      continue
    seen.add(cls)
    yield cls
    for hint in typing.get_type_hints(cls).values():
      waiting += [part for part in _parts(hint) if dataclasses.is_dataclass(part)]
    if cls is ModelSpec:
      waiting.append(PoolingConfig)  # its field also takes a name, so says object


def _parts(hint) -> Iterator[Any]:
  """The types in a type: itself, or those that list[...] and Optional[...] name."""
  args = typing.get_args(hint)
  if not args:
    yield hint
  for arg in args:
    yield from _parts(arg)


def _type(hint) -> str:
  text = hint.__name__ if isinstance(hint, type) and not typing.get_args(
      hint) else str(hint)
  text = re.sub(r'\b(?:\w+\.)+(\w+)', r'\1', text)
  return re.sub(r'Optional\[(.*)\]$', r'\1 | None', text)


def _default(field: dataclasses.Field) -> str:
  value = field.default
  if value is dataclasses.MISSING:
    factory = field.default_factory
    if factory is dataclasses.MISSING:
      return 'required'
    value = factory()
  if isinstance(value, list):
    return f'[{", ".join(_shown(v) for v in value)}]'
  return _shown(value)


def _shown(value) -> str:
  if dataclasses.is_dataclass(value):
    return f'{type(value).__name__}()'
  return repr(value)


@functools.cache
def _texts(cls: type) -> dict[str, str]:
  """Field -> description: docstring, then comments above, then the one behind."""
  texts = {name: [text] for name, text in _docstring(cls)[1].items()}
  for name, comments in _comments(cls):
    texts.setdefault(name, []).extend(filter(None, comments))
  found = {name: text for base in cls.__bases__ if dataclasses.is_dataclass(base)
           for name, text in _texts(base).items()}
  found |= {name: _sentences(parts) for name, parts in texts.items() if parts}
  if cls is ModelSpec:
    for other, prefix in _ASKED:
      for name, text in _texts(other).items():
        found.setdefault(prefix + name, text)
  return found


def _sentences(parts: list[str]) -> str:
  """One line; the choices ('a | b') stand first, and each part ends with a stop."""
  parts = sorted((' '.join(p.split()) for p in parts),
                 key=lambda p: not _CHOICES.fullmatch(p))
  return ' '.join(p if p.endswith('.') else f'{p}.' for p in parts)


def _docstring(cls: type) -> tuple[str, dict[str, str]]:
  """The summary of a class's docstring, and what it says of fields."""
  known = {f.name for f in dataclasses.fields(cls)}
  prose, texts, current = [], {}, None
  for line in inspect.cleandoc(cls.__doc__ or '').splitlines():
    found = _NAMES.fullmatch(line)
    names = found[1].split(', ') if found else []
    if found and names and set(names) <= known:
      current = names
      texts |= dict.fromkeys(names, found[2])
    elif current and line.startswith('  '):
      texts |= {name: f'{texts[name]} {line.strip()}' for name in current}
    else:
      current = None
      prose.append(line)
  return re.sub(r'\n{3,}', '\n\n', '\n'.join(prose)).strip(), texts


def _comments(cls: type) -> Iterator[tuple[str, tuple[str, str]]]:
  """(field, the comments above and behind it), of the fields of a class."""
  known = {f.name for f in dataclasses.fields(cls)}
  above: list[str] = []
  for line in textwrap.dedent(inspect.getsource(cls)).splitlines():
    if line.startswith('  # '):
      above.append(line[4:])
      continue
    found = _FIELD.fullmatch(line)
    if found and found[1] in known:
      yield found[1], (' '.join(above), found[2] or '')
    above = []
