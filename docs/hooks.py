"""What MkDocs adds to the pages: the configuration reference, out of the dataclasses.

A line `{{ configuration CLASS ... }}` becomes the description of these classes and of
their fields, as `jaxembed.config.describe` reads it.
"""

import html
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from jaxembed import config
from jaxembed.config import describe

_PLACE = re.compile(r'^\{\{ configuration ([\w ]+) \}\}$', re.MULTILINE)


def on_page_markdown(markdown: str, **_) -> str:
  """The page's source with the descriptions it asks for; MkDocs calls it."""
  return _PLACE.sub(lambda found: '\n\n'.join(map(section, found[1].split())), markdown)


def section(name: str) -> str:
  """A class as Markdown: a heading, what it is, a table of its fields."""
  cls = getattr(config, name)
  rows = [
      f'| <a id="{name}.{f.name}"></a>`{f.name}` | `{f.type}` '
      f'| {_default(f.default)} | {_words(f.text)} |' for f in describe.fields(cls)]
  # Where other pages look for the class, and for those whose fields it inherits.
  anchors = (f'<a id="jaxembed.config.{c.__name__}"></a>' for c in cls.__mro__[:-1])
  return '\n'.join([
      f'## {name} {{ #{name} }}', '', *anchors,
      html.escape(describe.summary(cls), quote=False),
      '', '| field | type | default | meaning |', '| --- | --- | --- | --- |', *rows])


def _default(text: str) -> str:
  return 'required' if text == 'required' else f'`{text}`'


def _words(text: str) -> str:
  """A description inside a table: what looks like Markdown or a cell's end is text."""
  parts = re.split(r'(`[^`]*`)', text)
  return ''.join(p if p.startswith('`') else re.sub(r'([*_|<\[\]])', r'\\\1', p)
                 for p in parts)
