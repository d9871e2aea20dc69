"""What is public and configured has a place in the references."""

import dataclasses
import pathlib
import re

from jaxembed import config

ROOT = pathlib.Path(__file__).parents[2]


def test_packages_that_name_what_is_public_have_a_place():
  """That each name is there is seen in the built site (test_site, thorough)."""
  pages = ''.join(p.read_text() for p in (ROOT / 'docs/api').glob('*.md'))
  for path in (ROOT / 'jaxembed').rglob('__init__.py'):
    package = '.'.join(path.parent.relative_to(ROOT).parts)
    if '\n__all__ = ' in path.read_text() and package != 'jaxembed.config':
      assert f'::: {package}\n' in pages, f'{package} is on no page of docs/api'


def test_configurations_are_in_their_reference():
  pages = ''.join(p.read_text() for p in (ROOT / 'docs').rglob('*.md'))
  shown = {name for found in re.findall(r'\{\{ configuration ([\w ]+) \}\}', pages)
           for name in found.split()}
  shown |= {base.__name__ for name in shown
            for base in getattr(config, name).__mro__}  # inherited fields
  lacking = [name for name in config.__all__
             if dataclasses.is_dataclass(getattr(config, name)) and name not in shown
             and not re.search(rf'::: jaxembed\.config\.\w+\.{name}\n', pages)]
  assert not lacking, f'add to docs/configuration.md: {lacking}'
