"""Former names of keyword arguments, which go on working."""

from collections.abc import Callable
import functools
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec('_P')
_R = TypeVar('_R')


def keywords(**former: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
  """Decorator: keyword arguments are taken by their former names too.

  former: former name -> the name that it has now. Giving both is a TypeError.
  """
  def renamed(fn: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(fn)
    def called(*args: _P.args, **given: _P.kwargs) -> _R:
      for old, new in former.items():
        if old in given and new in given:
          raise TypeError(f'{fn.__name__}() got {new} and {old}, its former name')
      call: Any = fn
      return call(*args, **{former.get(k, k): v for k, v in given.items()})
    return called
  return renamed
