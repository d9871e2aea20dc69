"""What --help and --describe of a launcher print."""

import re
import sys
import textwrap

from absl import flags

from jaxembed import config
from jaxembed.config import describe

from . import arguments, field_help

_COLUMN, _WIDTH = 24, 88
_HELP = ('--help', '-help', '-h', '--helpshort', '-helpshort')
_FORM = {'int': 'N', 'float': 'X', 'string': 'TEXT'}


def asked(argv: list[str], doc: str) -> str | None:
  """What to print instead of running: the answer to --help or --describe [FIELD].

  doc: the launcher's docstring: what it does, and an example.

  Raises:
    ValueError: --describe names no field.
  """
  for i, arg in enumerate(argv):
    name, _, value = arg.partition('=')
    if arg in _HELP:
      return of_launcher(doc)
    if name in ('--describe', '-describe') and 'config' in flags.FLAGS:
      following = argv[i + 1] if i + 1 < len(argv) else ''
      return field_help.text(value or ('' if following.startswith('-') else following))
  return None


def of_launcher(doc: str) -> str:
  """The docstring, the flags that it uses before the others, the configuration."""
  own, shared = _flags()
  # A flag that the first lines use without brackets is one to know.
  first = re.findall(r'--(\w+)', re.sub(r'\[[^]]*\]', '', doc))
  own.sort(key=lambda f: first.index(f.name) if f.name in first else len(first))
  lines = [doc.strip(), '', 'Flags', *(_line(f, doc) for f in own)]
  if 'config' in flags.FLAGS:
    lines += ['', *_configuration()]
  if shared:
    lines += ['', 'Several hosts', *(_line(f, doc) for f in shared)]
  return '\n'.join(lines)


def _flags() -> tuple[list[flags.Flag], list[flags.Flag]]:
  """The launcher's own flags, then those that it shares; and those for several hosts.
  """
  by_module = dict(flags.FLAGS.flags_by_module_dict())
  hosts = by_module.pop(f'{__package__}.hosts', [])
  own = list(by_module.pop(sys.argv[0], []))
  for module, found in by_module.items():
    own += found if module.startswith(f'{__package__}.') else []
  return own, hosts


def _configuration() -> list[str]:
  """The parts of an experiment, and the recipes there are."""
  lines = ['Configuration: --config.FIELD=VALUE sets a field; --describe [FIELD] tells '
           'them']
  inner = field_help.parts(config.Config)
  for field in describe.fields(config.Config):
    name = f'{field.name}={field.default}'
    if field.name in inner:
      name = f'{inner[field.name][0]}.'
    lines += _columns(f'  {name}', field.text)
  return [*lines, *_columns('  recipes', f'{", ".join(arguments.recipes())} (in '
                            f'{arguments.RECIPES})')]


def _line(flag: flags.Flag, doc: str) -> str:
  name = f'--[no]{flag.name}' if flag.boolean else f'--{flag.name}={_form(flag, doc)}'
  words = re.sub(r'^<[^>]*>: |;\s+repeat this option[^$]*$', '', flag.help)
  if flag.default not in (None, False, ''):
    words += f' Usually {flag.default}.'
  return '\n'.join(_columns(f'  {name}', words))


def _form(flag: flags.Flag, doc: str) -> str:
  """The kind of value, as the docstring writes it if it does."""
  if shown := re.search(rf'--{flag.name}=([A-Z]+(?:[:.][A-Za-z]+)*)', doc):
    return shown[1]
  choices = getattr(flag.parser, 'enum_values', None)
  if choices and len(choices) < 5:
    return '|'.join(choices)
  return _FORM.get(flag.flag_type().removeprefix('multi '), 'NAME')


def _columns(name: str, words: str) -> list[str]:
  """`words` wrapped in the second column."""
  lines = textwrap.wrap(words, _WIDTH - _COLUMN) or ['']
  if len(name) < _COLUMN:
    return [f'{name:{_COLUMN}}{lines[0]}', *(' ' * _COLUMN + x for x in lines[1:])]
  return [name, *(' ' * _COLUMN + x for x in lines)]
