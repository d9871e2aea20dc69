"""Validation of a whole configuration, its JSON both ways, paths of its fields."""

from collections.abc import Iterable
import dataclasses
import difflib
import re
import typing
from typing import Any

from jaxembed.config.check import typed
from jaxembed.config.experiment import Config, ModelSpec
from jaxembed.files.folder import short


def validate(cfg: Config) -> Config:
  """Checks every node again (the command line may have set leaves); returns cfg."""
  for node in _nodes(cfg):
    typed(node)
    if hasattr(node, '__post_init__'):
      node.__post_init__()
  if not cfg.stages:
    raise ValueError('config.stages is empty; give at least one StageConfig')
  if bool(cfg.model.source) == bool(cfg.model.preset):
    raise ValueError(
        f'config.model: source={cfg.model.source!r}, preset={cfg.model.preset!r}; '
        'set exactly one: source loads weights, preset starts from random ones')
  _check_kept_state(cfg)
  return cfg


def _check_kept_state(cfg: Config):
  for i, stage in enumerate(cfg.stages):
    if not stage.optim.keep_optimizer_state:
      continue
    here = f'config.stages[{i}].optim.keep_optimizer_state'
    if not i:
      raise ValueError(f'{here}: the first stage has none before it; set it to False')
    before = cfg.stages[i - 1]
    for part, name in (('optim', 'name'), ('optim', 'freeze'),
                       ('loss', 'learn_temperature')):
      was, now = (getattr(getattr(s, part), name) for s in (before, stage))
      if was != now:
        raise ValueError(f'{here}: {part}.{name} is {now!r}, and {was!r} in the stage '
                         'before; give both the same, or set it to False')


def field_path(path: str) -> str:
  """A field of Config as a flag names it, such as 'stages[0].optim.peak_lr'.

  A field's former name is answered by the one that it has now.

  Raises:
    ValueError: there is no such field, or it is a part of a value that is set as a
      whole; the part and the remedy are named.
  """
  hint: Any = Config
  found: list[str] = []
  for part in path.split('.'):
    here = '.'.join(['config', *found])
    name, *indices = re.findall(r'\w+', part) or ['']
    if not _settable(hint):
      raise ValueError(f'{here} is set as a whole, and not {here}.{name}'
                       f'{_instead(found, name)}')
    names = [f.name for f in dataclasses.fields(hint)]
    now = getattr(hint, 'FORMER', {}).get(name, name)
    if now not in names:
      raise unknown_field(here, name, hint, names)
    hint = typing.get_type_hints(hint)[now]
    for _ in indices:
      hint = (*typing.get_args(hint), object)[0]
    hint = next((a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)
                 and type(None) in typing.get_args(hint)), hint)
    found.append(now + part[len(name):])
  return '.'.join(found)


def _settable(hint: Any) -> bool:
  """Whether fields of a value of this type can be set one by one."""
  params: Any = getattr(hint, '__dataclass_params__', None)
  return params is not None and not params.frozen


def _instead(found: list[str], name: str) -> str:
  """What of ModelSpec stands for a field of one of its values."""
  *parent, last = found
  for field in (name, f'{last}_{name}'):
    if parent == ['model'] and field in ModelSpec.__dataclass_fields__:
      return f'; set config.model.{field}'
  return '; set it in the experiment\'s file'


def unknown_field(path: str, name: str, cls: type, known: Iterable[str]) -> ValueError:
  """The error for a field that a configuration's class does not have."""
  near = difflib.get_close_matches(name, known, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else f'; known: {sorted(known)}'
  return ValueError(f'{path}.{name:.80} is no field of {cls.__name__}{hint}')


def _nodes(node):
  if dataclasses.is_dataclass(node):
    yield node
    for f in dataclasses.fields(node):
      yield from _nodes(getattr(node, f.name))
  elif isinstance(node, list | tuple):
    for item in node:
      yield from _nodes(item)


def to_dict(cfg: Any) -> dict[str, Any]:
  """Plain JSON-ready data; `from_dict` is its inverse."""
  return dataclasses.asdict(cfg)


def from_dict(cls: type, data: dict[str, Any], path: str = 'config') -> Any:
  """Builds the dataclass `cls` from JSON data.

  Raises:
    ValueError: an unknown key, named with its path and the nearest field.
  """
  hints = {name: hint for name, hint in typing.get_type_hints(cls).items()
           if name in cls.__dataclass_fields__ and name not in getattr(
               cls, 'FORMER', {})}
  if not isinstance(data, dict):
    raise ValueError(f'{path} is {short(data)}, not the fields of {cls.__name__}')
  data = cls.upgraded(data) if hasattr(cls, 'upgraded') else data
  data = {getattr(cls, 'FORMER', {}).get(k, k): v for k, v in data.items()}
  unknown = sorted(set(data) - set(hints))
  if unknown:
    raise unknown_field(path, unknown[0], cls, hints)
  lacking = [f.name for f in dataclasses.fields(cls) if f.name not in data
             and f.default is f.default_factory is dataclasses.MISSING]
  if lacking:
    raise ValueError(f'{path} lacks {", ".join(lacking)}')
  return cls(**{key: _build(hints[key], value, f'{path}.{key}')
                for key, value in data.items()})


def _build(hint: Any, value: Any, path: str) -> Any:
  args = typing.get_args(hint)
  if value is None:
    return None
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return from_dict(hint, value, path)
  if type(None) in args:
    return _build(next(a for a in args if a is not type(None)), value, path)
  if not isinstance(value, list | tuple):
    return value  # where a sequence is wanted, the class itself says so
  if typing.get_origin(hint) is list:
    return [_build(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)]
  if typing.get_origin(hint) is tuple:
    return tuple(_build(args[0], v, f'{path}[{i}]') for i, v in enumerate(value))
  return value
