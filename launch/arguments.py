"""Arguments of the command line that name an experiment or a field of one."""

import pathlib
import re

from jaxembed import config


def of_config(arg: str) -> str:
  """--config.FIELD as the field is called now.

  Raises:
    ValueError: there is no such field.
  """
  found = re.fullmatch(r'(--?(?:no)?config\.)([^=]+)(.*)', arg, re.DOTALL)
  if not found:
    return arg
  return f'{found[1]}{config.field_path(found[2])}{found[3]}'


def repeats(argv: list[str]) -> list[str]:
  """`argv` with --config=X.json as --config=configs/repeat.py:X.json."""
  script = pathlib.Path(__file__).parents[1] / 'configs' / 'repeat.py'
  found = []
  for before, arg in zip(['', *argv], argv):
    given = re.fullmatch(r'(--?config=)(.*\.json)', arg)
    if given:
      arg = f'{given[1]}{script}:{given[2]}'
    elif before in ('-config', '--config') and arg.endswith('.json'):
      arg = f'{script}:{arg}'
    found.append(arg)
  return found
