"""The configuration tree as a whole: validation, and JSON both ways."""

import dataclasses
import difflib
import typing
from typing import Any

from jaxembed.config.check import typed
from jaxembed.config.experiment import Config
from jaxembed.folder import short


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


def _nodes(node):
  if dataclasses.is_dataclass(node):
    yield node
    for f in dataclasses.fields(node):
      yield from _nodes(getattr(node, f.name))
  elif isinstance(node, list | tuple):
    for item in node:
      yield from _nodes(item)


def to_dict(cfg) -> dict[str, Any]:
  """Plain JSON-ready data; `from_dict` is its inverse."""
  return dataclasses.asdict(cfg)


def from_dict(cls, data: dict[str, Any], path: str = 'config'):
  """Builds the dataclass `cls` from JSON data.

  Raises:
    ValueError: an unknown key, named with its path and the nearest field.
  """
  hints = typing.get_type_hints(cls)
  if not isinstance(data, dict):
    raise ValueError(f'{path} is {short(data)}, not the fields of {cls.__name__}')
  data = cls.upgraded(data) if hasattr(cls, 'upgraded') else data
  unknown = sorted(set(data) - set(hints))
  if unknown:
    near = difflib.get_close_matches(unknown[0], hints, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else f'; known: {sorted(hints)}'
    raise ValueError(f'{path}.{unknown[0]:.80} is no field of {cls.__name__}{hint}')
  lacking = [f.name for f in dataclasses.fields(cls) if f.name not in data
             and f.default is f.default_factory is dataclasses.MISSING]
  if lacking:
    raise ValueError(f'{path} lacks {", ".join(lacking)}')
  return cls(**{key: _build(hints[key], value, f'{path}.{key}')
                for key, value in data.items()})


def _build(hint, value, path: str):
  args = typing.get_args(hint)
  if value is None:
    return None
  if dataclasses.is_dataclass(hint):
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
