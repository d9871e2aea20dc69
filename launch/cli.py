"""Entry point shared by the launchers: flags, help, warnings and errors in one line."""

from collections.abc import Callable
import contextlib
import io
import os
import pathlib
import sys
from typing import Any, NoReturn, TypeVar
import warnings

from absl import app, flags, logging

from jaxembed.files import place

from . import arguments, errors, own_kernels, parsing, usage
from .signals import stop_on_signals as stop_on_signals

_T = TypeVar('_T')
_WRITTEN = contextlib.ExitStack()  # closed when `main` ends


def given(flag: flags.FlagHolder[_T | None]) -> _T:
  """The value of a flag that is marked as required."""
  assert flag.value is not None, flag.name
  return flag.value


def written(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
  """Where to write what a flag names; to a URL it is sent once `main` has ended well.

  None, where the flag is not given.
  """
  found: Any = flag.value and _WRITTEN.enter_context(place.published(flag.value))
  return found


def run(main: Callable[[], None], recipe: str = '') -> NoReturn:
  """absl's app.run, with exit codes and one line an error as errors.py has them.

  --config=MANIFEST.json means the experiment of that run, --config=NAME a recipe.
  Without one it is the experiment called `recipe`. --help and --describe print and
  leave.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(line_buffering=True)  # a log shows each line at once
  _answer(main.__globals__.get('__doc__') or '')
  try:
    argv = arguments.experiments(arguments.with_recipe(sys.argv, recipe))
    app.run(lambda _: _guarded(main), argv, flags_parser=parsing.parse)
  except KeyboardInterrupt:
    errors.end('Ctrl-C: stopped; what was written whole before stays',
               errors.INTERRUPTED)


def _guarded(main: Callable[[], None]) -> None:
  """Runs `main`; an error that is for people ends it in one line."""
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # libraries chat at INFO
  with warnings.catch_warnings():
    warnings.showwarning = _note
    try:
      with _WRITTEN:
        own_kernels.use()
        if cache := os.environ.get('XDG_CACHE_HOME'):
          place.HOME = os.path.join(cache, 'jaxembed', 'remote')
        main()
    except BrokenPipeError:
      errors.reader_left()
    except Exception as e:
      told = errors.explained(e)
      if told is None:
        raise
      wrong = isinstance(e, errors.WrongCommand)
      errors.end(told, errors.WRONG_COMMAND if wrong else errors.REFUSED)


def _answer(doc: str) -> None:
  """Prints what --help or --describe ask for, and leaves."""
  try:
    told = usage.asked(sys.argv[1:], doc)
    if told is not None:
      print(told, flush=True)
      sys.exit(0)
  except ValueError as e:
    errors.end(e, errors.WRONG_COMMAND)
  except BrokenPipeError:
    errors.reader_left()


def _note(message, category, filename, *_args, **_kwargs) -> None:
  """A warning in one line. One that our code did not give is not for the reader."""
  if errors.is_ours(filename):
    print(f'note: {" ".join(str(message).split())}', file=sys.stderr)
  else:
    logging.info('%s: %s: %s', filename, category.__name__, message)
