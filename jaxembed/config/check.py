"""Shared validation of configuration fields: types, ranges, choices."""

from collections.abc import Mapping
import dataclasses
import functools
import numbers
import re
import typing
from typing import Any

from jaxembed.files.folder import short

# No model's sizes come near: vocabularies and positions; widths; layers and heads.
IDS, WIDTH, PARTS = 2**30, 2**20, 2**12

_WORDS = {int: 'a whole number', float: 'a number', str: 'a text',
          bool: 'True or False'}


def typed(cfg: Any) -> None:
  """Raises ValueError unless each field of a dataclass holds a value of its type.

  Whole numbers pass for numbers, lists for tuples; NaN is no number, and True is
  neither 1 nor 1.0.
  """
  for name, hint in _hints(type(cfg)).items():
    value = getattr(cfg, name)
    if not _fits(value, hint):
      raise ValueError(f'{type(cfg).__name__}.{name} is {short(value)}; '
                       f'give {_wanted(hint)}')


@functools.cache
def _hints(cls) -> dict[str, Any]:
  hints = typing.get_type_hints(cls)
  return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _fits(value, hint) -> bool:
  args = typing.get_args(hint)
  if type(None) in args:
    return value is None or any(
        _fits(value, a) for a in args if a is not type(None))
  if typing.get_origin(hint) in (list, tuple):
    if not isinstance(value, list | tuple):
      return False
    if typing.get_origin(hint) is tuple and args[-1] is not Ellipsis:
      return len(value) == len(args) and all(map(_fits, value, args))
    return all(_fits(v, args[0]) for v in value)
  if hint in (int, float):
    kind = numbers.Integral if hint is int else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool) and value == value
  return not isinstance(hint, type) or isinstance(value, hint)


def _wanted(hint) -> str:
  args = typing.get_args(hint)
  if type(None) in args:
    return ' or '.join([*(_wanted(a) for a in args if a is not type(None)), 'None'])
  if typing.get_origin(hint) in (list, tuple):
    parts = [_wanted(a) for a in args if a is not Ellipsis]
    of = ', '.join(parts) if len(parts) > 1 else f'of {parts[0]} each'
    return f'a sequence {of}' if len(parts) == 1 else f'a tuple ({of})'
  return _WORDS.get(hint) or f'a {hint.__name__}'


def require(cfg: Any, name: str, holds: bool, wanted: str) -> None:
  """Raises ValueError, naming the field `name` and what is wanted, unless `holds`."""
  if not holds:
    raise ValueError(f'{type(cfg).__name__}.{name} is {short(getattr(cfg, name))}; '
                     f'give {wanted}')


def at_least(cfg: Any, **bounds: int) -> None:
  """Raises ValueError unless each named field has at least the value given here."""
  for name, low in bounds.items():
    require(cfg, name, getattr(cfg, name) >= low, f'{low} or more')


def between(cfg: Any, low: float, high: float, *names: str) -> None:
  """Raises ValueError unless each named field is from `low` to `high`."""
  for name in names:
    require(cfg, name, low <= getattr(cfg, name) <= high, f'{low} to {high}')


def positive(cfg: Any, *names: str) -> None:
  """Raises ValueError unless each named field is above 0, and finite."""
  for name in names:
    require(cfg, name, 0 < getattr(cfg, name) < float('inf'), 'a number above 0')


def pattern(cfg: Any, name: str, text: str) -> None:
  """Raises ValueError unless `text` of the field `name` is a regular expression."""
  try:
    re.compile(text)
  except re.error as e:
    raise ValueError(f'{type(cfg).__name__}.{name} has {text!r}, which is no regular '
                     f'expression ({e})') from e


def one_of(cfg: Any, name: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError unless the field `name` of `cfg` is one of `allowed`."""
  value = getattr(cfg, name)
  if value not in allowed:
    raise ValueError(f'{type(cfg).__name__}.{name} is {value!r}; '
                     f'choose one of {", ".join(allowed)}')


def options(cfg: Any, defaults: Mapping[str, object], reader: str) -> dict[str, object]:
  """`defaults` with what cfg.options, pairs of (name, value), puts in their place.

  Raises ValueError for a name without a default, which `reader` then does not read,
  and for a value of another type than its default.
  """
  for name, value in cfg.options:
    here = f'{type(cfg).__name__}.options has {name!r}'
    if name not in defaults:
      raise ValueError(f'{here}, which {reader} does not read; it reads '
                       f'{", ".join(defaults) or "none"}')
    if not _fits(value, type(defaults[name])):
      raise ValueError(f'{here} = {short(value)}; give {_wanted(type(defaults[name]))}')
  return {**defaults, **dict(cfg.options)}


def divides(what: str, total: int, shards: int) -> None:
  """Raises ValueError unless `total` rows split evenly over `shards` devices."""
  if total % shards:
    low = total // shards * shards
    raise ValueError(f'{what} is not a multiple of {shards} devices (data x fsdp); use '
                     f'{low or shards} or {low + shards}')
