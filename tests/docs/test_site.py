"""The documentation's site: every page is in its menu, every link leads somewhere."""

import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import jaxembed

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'
PAGES = sorted(DOCS.rglob('*.md'))
# Files that are read on a repository's page, and lead into the tree.
TOP = sorted(ROOT.glob('*.md'))
_LINK = re.compile(r'\]\(([^)\s]+)\)')


def test_every_page_is_in_the_menu():
  menu = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:\n')[2]
  listed = re.findall(r'([\w/]+\.md)$', menu, re.MULTILINE)
  assert sorted(listed) == [p.relative_to(DOCS).as_posix() for p in PAGES]


@pytest.mark.parametrize('page', [*PAGES, *TOP], ids=lambda p: p.name)
def test_links_to_files_lead_to_files(page):
  """Headings are looked up when the site is built."""
  for link in _LINK.findall(page.read_text()):
    path = link.partition('#')[0]
    if path and '://' not in link and not link.startswith('mailto:'):
      assert (page.parent / path).exists(), f'{page.name}: {link}'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The built site; a warning is an error."""
  pytest.importorskip('mkdocs')
  pytest.importorskip('mkdocstrings')
  folder = tmp_path_factory.mktemp('site')
  done = subprocess.run(
      [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet',
       f'--site-dir={folder}'], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.mark.thorough
def test_the_site_loads_nothing_from_elsewhere(site):
  for page in site.rglob('*.html'):
    loaded = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(https?:[^"]+)"',
                        page.read_text())
    assert not loaded, f'{page.name}: {loaded}'


@pytest.mark.thorough
def test_every_public_name_is_in_the_reference(site):
  """Functions and classes of each package's __all__, under that name or their own."""
  anchors = {anchor for page in site.rglob('*.html')
             for anchor in re.findall(r'id="(jaxembed[^"]*)"', page.read_text())}
  packages = ['jaxembed', *(
      m.name for m in pkgutil.walk_packages(jaxembed.__path__, 'jaxembed.') if m.ispkg)]
  lacking = []
  for package in map(importlib.import_module, packages):
    for name in getattr(package, '__all__', ()):
      value = getattr(package, name)
      own = (f'{getattr(value, "__module__", "")}.'
             f'{getattr(value, "__qualname__", name)}')
      places = {own, f'{package.__name__}.{name}', f'jaxembed.config.{name}'}
      if callable(value) and not places & anchors:
        lacking.append(f'{package.__name__}.{name}')
  assert not lacking, f'add to a page of docs/api or to configuration.md: {lacking}'
