"""Arguments of the command line that name an experiment or a field of one."""

from collections.abc import Iterator
import difflib
import pathlib
import re

from jaxembed import config
from jaxembed.files.place import fetched

# Beside this package, both in a checkout and in an installation.
RECIPES = pathlib.Path(__file__).parents[1] / 'configs'


def of_config(arg: str) -> str:
  """--config.FIELD as the field is called now.

  Raises:
    ValueError: there is no such field.
  """
  found = re.fullmatch(r'(--?(?:no)?config\.)([^=]+)(.*)', arg, re.DOTALL)
  if not found:
    return arg
  return f'{found[1]}{config.field_path(found[2])}{found[3]}'


def recipes() -> list[str]:
  """Names of the experiments that come with the package."""
  return sorted(p.stem for p in RECIPES.glob('[a-z]*.py'))


def experiment(given: str) -> str:
  """What --config means: FILE.py[:ARGUMENT], a recipe's name, or a run's JSON.

  A file of the working directory goes before a recipe ('quickstart', as
  'configs/quickstart.py' too). X.json is the experiment of the run that wrote it.
  What is neither is answered as it is given.
  """
  if given.endswith('.json'):
    given = str(fetched(given))
    return f'{RECIPES / "repeat.py"}:{given}'
  name, colon, argument = given.partition(':')
  stem = _stem(name)
  if pathlib.Path(name).is_file() or stem not in recipes():
    return given
  return f'{RECIPES / stem}.py{colon}{argument}'


def experiments(argv: list[str]) -> list[str]:
  """`argv` with every value of --config as `experiment` reads it."""
  found = list(argv)
  for place, flag, value in _configs(argv):
    found[place] = flag + experiment(value)
  return found


def with_recipe(argv: list[str], recipe: str) -> list[str]:
  """`argv`, and --config=`recipe` if it has no --config and there is a recipe."""
  if not recipe or any(re.match(r'--?config(=|$)', arg) for arg in argv[1:]):
    return argv
  return [argv[0], f'--config={recipe}', *argv[1:]]


def check_experiments(argv: list[str]) -> None:
  """Raises ValueError, with what was meant, if a --config names no file."""
  for _, _, value in _configs(argv):
    name = value.partition(':')[0]
    if not pathlib.Path(name).is_file():
      near = difflib.get_close_matches(_stem(name), recipes(), n=1)
      raise ValueError(f'--config={name}: there is no such file, and no such recipe; '
                       + (f'did you mean {near[0]!r}?' if near else
                          f'recipes are {", ".join(recipes())}'))


def _configs(argv: list[str]) -> Iterator[tuple[int, str, str]]:
  """(place in `argv`, '--config=' or '', value) of every --config."""
  for place, (before, arg) in enumerate(zip(['', *argv], argv)):
    if given := re.fullmatch(r'(--?config=)(.*)', arg, re.DOTALL):
      yield place, given[1], given[2]
    elif before in ('-config', '--config'):
      yield place, '', arg


def _stem(name: str) -> str:
  return re.sub(r'^(\./)?configs/|\.py$', '', name)
