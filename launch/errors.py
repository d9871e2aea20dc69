"""Errors that a launcher prints in one line instead of a traceback.

Exit codes: 0 done; 1 refused or failed, in one line (a traceback is a fault of ours);
2 the command line or the configuration is wrong; 130 stopped by Ctrl-C and 143 by
SIGTERM, as shells have it.
"""

import os
import pathlib
import re
import sys
import traceback
from typing import Any, NoReturn

import jaxembed
from jaxembed import config

from . import remedies

REFUSED, WRONG_COMMAND, INTERRUPTED, TERMINATED = 1, 2, 130, 143
# Launchers and recipes stand in the package, or, in a checkout, beside it.
_OURS = (pathlib.Path(jaxembed.__file__).parent, pathlib.Path(__file__).parent,
         pathlib.Path(__file__).parents[1] / 'configs')


class WrongCommand(ValueError):
  """The command line is wrong: exit code 2."""


def explained(e: BaseException) -> str | None:
  """The line for a person, if an error is for one: the system's own errors, those that
  our code raises, a package or a device that is not there.

  What else a library raises below us is a fault of ours, and its traceback is wanted.
  """
  if isinstance(e, ModuleNotFoundError) and e.name:
    return remedies.of_package(e.name)
  if isinstance(e, RuntimeError | MemoryError):
    return remedies.of_machine(e)
  if isinstance(e, OSError | FloatingPointError):
    return _line(e)
  frames = traceback.extract_tb(e.__traceback__)
  ours = bool(frames) and is_ours(frames[-1].filename)
  return _line(e) if ours and isinstance(e, ValueError | ImportError) else None


def is_ours(file: str) -> bool:
  """Whether a source file is one of this library's."""
  return any(pathlib.Path(file).is_relative_to(room) for room in _OURS)


def of_experiment(e: BaseException) -> str:
  """The line for an error in an experiment's file: where it is, and what was meant."""
  e = first_cause(e)
  if told := explained(e):
    return told
  if isinstance(e, SyntaxError):
    return f'{e.filename}:{e.lineno}: {e.msg}'
  if "no attribute 'get_config'" in str(e):
    return 'the file of --config has no get_config(); let one return a Config'
  frames = traceback.extract_tb(e.__traceback__)
  where = f'{frames[-1].filename}:{frames[-1].lineno}: ' if frames else ''
  if found := re.match(
      r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(e)):
    cls: Any = getattr(config, found[1], None)
    if hasattr(cls, '__dataclass_fields__'):
      e = config.unknown_field(cls.__name__, found[2], cls, cls.__dataclass_fields__)
  kind = '' if isinstance(e, ValueError) else f'{type(e).__name__}: '
  return f'{where}{kind}{_line(e)}'


def first_cause(e: BaseException) -> BaseException:
  """The error behind those of the libraries that pass it on with its traceback."""
  while '\n' in str(e) or isinstance(e, LookupError):
    behind = e.__cause__ or (None if e.__suppress_context__ else e.__context__)
    if behind is None:
      break
    e = behind
  return e


def _line(e: BaseException) -> str:
  text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
  if isinstance(e, OSError) and e.strerror and e.filename is not None:
    text = f'{e.filename}: {remedies.SYSTEM.get(e.errno or 0, e.strerror)}'
  return ' '.join(text.split())


def end(e: BaseException | str, code: int) -> NoReturn:
  """Prints the error in one line, and leaves with `code`."""
  text = e if isinstance(e, str) else _line(e)
  print(f'error: {" ".join(text.split())}', file=sys.stderr)
  sys.exit(code)


def reader_left() -> NoReturn:
  """Leaves in silence: who read our output has closed it (`| head`)."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(0)
