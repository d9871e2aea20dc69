"""The command line of a launcher as flags, or the one line that says what is wrong."""

import difflib
import re
import sys

from absl import flags

from jaxembed import config

from . import arguments, errors


def parse(argv: list[str]) -> list[str]:
  """absl's flags, and the experiment that --config names; leaves with exit code 2 if
  either is wrong."""
  try:
    # config_flags looks for its fields in sys.argv itself.
    sys.argv[1:] = argv[1:] = [arguments.of_config(arg) for arg in argv[1:]]
    arguments.check_experiments(argv)
    left = flags.FLAGS(argv, known_only=False)
    if len(left) > 1:
      raise errors.WrongCommand(f'{" ".join(left[1:])}: every argument has the form '
                                f'--flag=value; {sys.argv[0]} --help tells them')
    _check_experiment()
  except flags.Error as e:
    errors.end(_of_flag(e), errors.WRONG_COMMAND)
  except IndexError:
    named = [a for a in argv if re.match(r'--?config\..*\[', a)]
    errors.end(f'{" ".join(named)}: the experiment has no such entry; they are counted '
               'from 0', errors.WRONG_COMMAND)
  except Exception as e:
    errors.end(errors.of_experiment(e), errors.WRONG_COMMAND)
  return left


def _check_experiment() -> None:
  """Raises what is wrong with the file that --config names."""
  if 'config' not in flags.FLAGS:
    return
  found = flags.FLAGS['config'].value  # asked for, a file that failed says so
  if not (found is None or isinstance(found, config.Config)):
    raise errors.WrongCommand(
        f'get_config() of --config returns a {type(found).__name__}; let it return a '
        'jaxembed.config.Config')


def _choose(given: str, names: list[str]) -> str:
  near = difflib.get_close_matches(given, names, n=1)
  return f'did you mean {near[0]!r}?' if near else f'choose one of {", ".join(names)}'


def _of_flag(e: flags.Error) -> str:
  """absl's words for a flag that is missing or has a wrong value, in plainer ones."""
  cause = errors.first_cause(e)
  if not isinstance(cause, flags.Error):
    return errors.of_experiment(cause)
  text = str(cause)
  if found := re.search(r'Flag (--\w+) must have a value other than None', text):
    return f'{found[1]} is missing; {sys.argv[0]} --help tells what it is'
  if found := re.match(r'flag (--[^=]+)=(.*?): (invalid literal for int|could not '
                       'convert string to float)', text, re.DOTALL):
    kind = 'whole number' if 'int' in found[3] else 'number'
    return f'{found[1]} is {found[2]!r}; give a {kind}'
  if found := re.match(r'flag (--\w+)=(.*): value should be one of <(.*)>', text):
    return f'{found[1]} is {found[2]!r}; {_choose(found[2], found[3].split("|"))}'
  return text
