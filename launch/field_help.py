"""Fields of an experiment's configuration as --describe prints them."""

from collections.abc import Iterator
import dataclasses
import re
import textwrap
import typing

from jaxembed import config
from jaxembed.config import describe

_WIDTH = 88


def parts(cls: type) -> dict[str, tuple[str, type]]:
  """Fields that hold a configuration: name -> (the name in a flag, the class)."""
  found = {}
  for name, hint in typing.get_type_hints(cls).items():
    inner = [h for h in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(h)]
    if (cls, name) == (config.ModelSpec, 'pooling'):  # it takes a name too
      inner = [config.PoolingConfig]
    if inner:
      listed = typing.get_origin(hint) is list
      found[name] = f'{name}[0]' if listed else name, inner[0]
  return found


def text(path: str = '') -> str:
  """The fields at `path` ('stages[0].optim', 'model', 'optim.peak_lr' in full); '': all
  there are.

  Raises:
    ValueError: there is no such field.
  """
  cls, before = config.Config, []
  names = [re.sub(r'\[.*', '', p) for p in path.removeprefix('config').split('.') if p]
  for i, name in enumerate(names):
    known = {f.name: f for f in describe.fields(cls)}
    name = getattr(cls, 'FORMER', {}).get(name, name)
    if name not in known:
      raise config.unknown_field('.'.join(['config', *before]), name, cls, known)
    if name not in parts(cls):
      if names[i + 1:]:
        raise ValueError(f'config.{".".join([*before, name])} is a '
                         f'{known[name].type}, and has no fields')
      return _entry(cls, known[name], '.'.join(before))
    shown, cls = parts(cls)[name]
    before.append(shown)
  return '\n'.join(_section(cls, '.'.join(before), deep=not names, seen=set()))


def _section(cls: type, path: str, deep: bool, seen: set[type]) -> Iterator[str]:
  yield textwrap.fill(f'{path or "config"} is a {cls.__name__}: '
                      f'{describe.summary(cls)}', _WIDTH)
  if cls in seen:
    yield '  (its fields stand above)'
    return
  seen.add(cls)
  if not _settable(cls):
    yield f"  Set as a whole, in the experiment's file: {cls.__name__}(...)."
  inner = parts(cls)
  yield from (_entry(cls, f, path) for f in describe.fields(cls)
              if f.name not in inner or f.name == 'pooling' or not deep)
  for shown, part in inner.values() if deep else ():
    yield ''
    yield from _section(part, '.'.join(filter(None, (path, shown))), deep, seen)


def _entry(cls: type, field: describe.FieldDoc, path: str) -> str:
  """A field, its type and default, and what it means."""
  shown, part = parts(cls).get(field.name, (field.name, None))
  where = '.'.join(filter(None, (path, shown)))
  if part is None or field.name == 'pooling':
    flag = f'--config.{where}' if _settable(cls) else field.name
    head = f'{flag}={field.default}   {field.type}'
  else:
    head = f'{where}.'
  words = field.text or (describe.summary(part) if part else '')
  lines = textwrap.wrap(words, _WIDTH - 6)
  return '\n'.join([f'  {head}', *(f'      {line}' for line in lines)])


def _settable(cls: type) -> bool:
  return not cls.__dataclass_params__.frozen
