"""The command `jaxembed NAME`: one launcher a name, found by this list."""

import ast
import difflib
import importlib.metadata
import os
import pathlib
import runpy
import shutil
import sys

# heading -> modules of this package, in the order in which people need them.
COMMANDS = {
    'First use': ('demo', 'quickstart'),
    'Models': ('train', 'evaluate', 'encode', 'convert', 'average', 'report',
               'status'),
    'Models out of models': ('merge', 'cut', 'vocabulary', 'plain'),
    'Vectors and data': ('search', 'mine', 'teach'),
    'Before and beside': ('plan', 'bench', 'tune', 'parity', 'two_stage', 'negatives'),
}


def main() -> None:
  """Runs the launcher that sys.argv[1] names with the arguments behind it."""
  name, *rest = sys.argv[1:] or ['--help']
  if name in ('--help', '-h', '-help', '--helpshort', '--helpfull', 'help'):
    try:
      print(overview(), flush=True)
    except BrokenPipeError:
      from . import errors  # brings more of the package than this list needs
      errors.reader_left()
  elif name == '--version':
    print(f'jaxembed {importlib.metadata.version("jaxembed")}')
  elif name in names():
    sys.argv = [f'jaxembed {name}', *rest]
    runpy.run_module(f'{__package__}.{name}', run_name='__main__')
  else:
    print(f'error: jaxembed has no command {name!r}{_near(name)}', file=sys.stderr)
    sys.exit(2)


def names() -> list[str]:
  """Every command."""
  return [name for group in COMMANDS.values() for name in group]


def overview() -> str:
  """What there is, with one line each."""
  lines = ['Train, evaluate, run and convert text-embedding models in JAX.', '',
           '  jaxembed COMMAND [--flags]']
  width = max(map(len, names())) + 2
  for heading, group in COMMANDS.items():
    lines += ['', heading, *(f'  {n:{width}}{summary(n)}' for n in group)]
  return '\n'.join([*lines, '', 'jaxembed COMMAND --help tells its flags.'])


def summary(name: str) -> str:
  """First line of a launcher's docstring; the launcher is not imported."""
  text = (pathlib.Path(__file__).parent / f'{name}.py').read_text('utf-8')
  doc = ast.get_docstring(ast.parse(text))
  return (doc or '').split('\n')[0].rstrip('.:')


def where() -> str:
  """A line that tells where `jaxembed` is, if a shell would not find it; or ''."""
  command = pathlib.Path(sys.executable).with_name('jaxembed')
  if shutil.which('jaxembed') or not command.exists():
    return ''
  return f'\n  (jaxembed is {os.path.relpath(command)} here)'


def _near(name: str) -> str:
  near = difflib.get_close_matches(name, names(), n=1)
  return (f'; did you mean {near[0]!r}?' if near
          else f'; it has {", ".join(names())}')
