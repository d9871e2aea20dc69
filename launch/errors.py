"""Errors that a launcher prints in one line instead of a traceback."""

import pathlib
import sys
import traceback
from typing import NoReturn

import jaxembed

# Launchers and recipes stand in the package, or, in a checkout, beside it.
_OURS = (pathlib.Path(jaxembed.__file__).parent, pathlib.Path(__file__).parent,
         pathlib.Path(__file__).parents[1] / 'configs')


def for_people(e: BaseException) -> bool:
  """Whether an error says what to do: the system's own, and those our code raises.

  What a library raises below us is a fault of ours, and its traceback is wanted.
  """
  if isinstance(e, OSError | FloatingPointError):
    return True
  frames = traceback.extract_tb(e.__traceback__)
  return isinstance(e, ValueError | ImportError) and bool(frames) and any(
      pathlib.Path(frames[-1].filename).is_relative_to(room) for room in _OURS)


def first_cause(e: BaseException) -> BaseException:
  """The error behind those of the libraries that pass it on with its traceback."""
  while '\n' in str(e) or isinstance(e, LookupError):
    behind = e.__cause__ or (None if e.__suppress_context__ else e.__context__)
    if behind is None:
      break
    e = behind
  return e


def end(e: BaseException, code: int) -> NoReturn:
  """Prints the error in one line, and leaves with `code`."""
  text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
  print(f'error: {" ".join(text.split())}', file=sys.stderr)
  sys.exit(code)
