"""Errors of damaged files, told apart from read errors that may pass."""

from collections.abc import Callable
import pathlib
import re
import time
from typing import Any

import jax

# In the words of TensorStore and of the system: what another attempt may not meet.
_PASSING = re.compile(
    'RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|'
    r'CANCELLED|OS error (?!2\b|20\b|21\b)|Too many open files|Input/output error')


class Damaged(ValueError):
  """A file or folder that is proven to be not what was saved."""


def patiently(read: Callable[[], Any], folder: pathlib.Path,
              check: Callable[[], None] = lambda: None) -> Any:
  """What `read()` returns; where it fails it is tried once more, for what passes.

  Raises:
    Damaged: the folder can be read, and what is in it is not what was saved.
    OSError: it cannot be read.
    Whatever `check()`, called after a failure, raises.
  """
  try:
    return read()
  except Exception as e:  # Orbax raises many types for damaged files
    if _passing(e):
      time.sleep(1.0)
    else:
      check()
  try:
    return read()
  except Exception as e:
    problem = _passing(e) or _unreadable(folder)
    if problem is None:
      reason = (str(e) if isinstance(e, Damaged) else
                f'cannot be read ({type(e).__name__}: {str(e)[:160]})')
      raise Damaged(reason) from e
    if isinstance(problem, MemoryError | jax.errors.JaxRuntimeError):
      raise
    raise OSError(f'{folder} cannot be read now ({str(problem)[:300]}); it was left as '
                  'it is. Remove the cause and give the same command again') from e


def _passing(error: BaseException | None) -> BaseException | None:
  """The cause of an error that says nothing about the bytes on the disk, if any."""
  if error is None or isinstance(error, Damaged):
    return None
  if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
    return None
  if isinstance(error, OSError | MemoryError | jax.errors.JaxRuntimeError):
    return error
  if error.__cause__ is None and _PASSING.search(str(error)):
    return error
  return _passing(error.__cause__)


def _unreadable(folder: pathlib.Path) -> OSError | None:
  """What hinders reading the files of a checkpoint, other than that one is missing."""
  for file in sorted(folder.rglob('*')):
    try:
      if file.is_file():
        with file.open('rb') as f:
          while f.read(1 << 24):
            pass
    except OSError as e:
      return e
  return None
