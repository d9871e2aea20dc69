"""What MkDocs adds to the pages: files of the repository, and what configurations hold.

A line `--8<-- "FILE"` or `--8<-- "FILE:PART"` becomes that file, or what stands in it
between the marks `--8<-- [start:PART]` and `[end:PART]`. A line
`{{ configuration CLASS ... }}` becomes the description of these classes and of their
fields, as `jaxembed.config.describe` reads it. A line `{{ commands }}` becomes what the
docstrings of the launchers say, in the order of the command `jaxembed`.
"""

import ast
import html
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from jaxembed import config
from jaxembed.config import describe
from launch import commands

ROOT = pathlib.Path(__file__).parents[1]
_INCLUDE = re.compile(r'^--8<-- "([\w./]+)(?::(\w+))?"$', re.MULTILINE)
_MARK = re.compile(r'^<!-- --8<-- .*-->\n', re.MULTILINE)
_LINK = re.compile(r'\]\((?!\w+:)([\w./]+)')
_PLACE = re.compile(r'^\{\{ configuration ([\w ]+) \}\}$', re.MULTILINE)
# Files at the top, and the pages that show them.
_PAGES = {'README.md': 'index.md', 'BENCHMARKS.md': 'benchmarks.md',
          'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md',
          'WORKSPACE.md': 'workspace.md'}


def on_page_markdown(markdown: str, **_) -> str:
  """The page's source with all that it asks for; MkDocs calls it."""
  markdown = markdown.replace('{{ commands }}', launchers())
  markdown = _INCLUDE.sub(lambda found: included(*found.groups()), markdown)
  return _PLACE.sub(lambda found: '\n\n'.join(map(section, found[1].split())), markdown)


def included(name: str, part: str | None) -> str:
  """A file at the top, or a part of it, with links that lead to pages."""
  text = (ROOT / name).read_text('utf-8')
  if part:
    _, start, text = text.partition(f'<!-- --8<-- [start:{part}] -->\n')
    text, end, _ = text.partition(f'<!-- --8<-- [end:{part}] -->')
    if not (start and end):
      raise ValueError(f'{name} has no part {part!r} between its marks')
  return _LINK.sub(lambda link: f']({_page(link[1])}', _MARK.sub('', text)).strip()


def _page(path: str) -> str:
  return _PAGES.get(path, path.removeprefix('docs/'))


def launchers() -> str:
  """Every command: a heading, what it does, how it is called."""
  lines = []
  for heading, names in commands.COMMANDS.items():
    lines += [f'## {heading}', '']
    for name in names:
      module = ast.parse((ROOT / f'launch/{name}.py').read_text('utf-8'))
      first, _, rest = (ast.get_docstring(module) or '').partition('\n')
      rest = rest.replace('python -m launch.', 'jaxembed ').strip('\n')
      lines += [f'### jaxembed {name} {{ #{name} }}', '', first, '', '```text', rest,
                '```', '']
  return '\n'.join(lines)


def section(name: str) -> str:
  """A class as Markdown: a heading, what it is, a table of its fields."""
  cls = getattr(config, name)
  rows = [
      f'| <a id="{name}.{f.name}"></a>`{f.name}` | `{f.type}` '
      f'| {_default(f.default)} | {_words(f.text)} |' for f in describe.fields(cls)]
  # Where other pages look for the class, and for those whose fields it inherits.
  anchors = (f'<a id="jaxembed.config.{c.__name__}"></a>' for c in cls.__mro__[:-1])
  return '\n'.join([
      f'### {name} {{ #{name} }}', '', *anchors,
      html.escape(describe.summary(cls), quote=False),
      '', '| field | type | default | meaning |', '| --- | --- | --- | --- |', *rows])


def _default(text: str) -> str:
  return 'required' if text == 'required' else f'`{text}`'


def _words(text: str) -> str:
  """A description inside a table: what looks like Markdown or a cell's end is text."""
  parts = re.split(r'(`[^`]*`)', text)
  return ''.join(p if p.startswith('`') else re.sub(r'([*_|<\[\]])', r'\\\1', p)
                 for p in parts)
