"""Flags from the fields of a configuration dataclass."""

from collections.abc import Callable
import dataclasses
from typing import Any, TypeVar, get_type_hints

from absl import flags

T = TypeVar('T')


def define(cls: type[T]) -> Callable[[], T]:
  """Defines a flag for every field; returns a function that makes a `cls` of them.

  A field that may be None takes the word none.
  """
  hints, held = get_type_hints(cls), {}
  made: Any = cls
  for field in dataclasses.fields(made):
    default: Any = field.default
    told = f'See {cls.__module__}.{cls.__name__}.{field.name}.'
    kind = hints[field.name]
    if kind is bool:
      held[field.name] = flags.DEFINE_bool(field.name, default, told)
    elif kind is int:
      held[field.name] = flags.DEFINE_integer(field.name, default, told)
    elif kind is str:
      held[field.name] = flags.DEFINE_string(field.name, default, told)
    else:
      held[field.name] = flags.DEFINE_string(field.name, str(default).lower(),
                                             told + ' A number, or none.')

  def value(name: str) -> Any:
    found = held[name].value
    if hints[name] in (bool, int, str):
      return found
    try:
      return None if found == 'none' else float(found)
    except ValueError:
      raise ValueError(f'--{name}={found!r} is no number; none switches it '
                       'off') from None

  return lambda: cls(**{name: value(name) for name in held})
