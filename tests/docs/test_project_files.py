"""Files about the project agree: version, Pythons, commands, the changelog's form."""

import pathlib
import re
import tomllib

import pytest

import jaxembed

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
yaml = pytest.importorskip('yaml')


def test_one_version():
  citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  releases = re.findall(r'^## \[(\d+\.\d+\.\d+)\]', (ROOT / 'CHANGELOG.md').read_text(),
                        re.MULTILINE)
  assert jaxembed.__version__ == citation['version'] == releases[0]
  assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)


def test_the_same_pythons_are_tested_and_promised():
  workflow = yaml.safe_load((ROOT / '.github/workflows/test.yml').read_text())
  tested = workflow['jobs']['test']['strategy']['matrix']['python']
  low, past = re.fullmatch(r'>=3\.(\d+),<3\.(\d+)', PROJECT['requires-python']).groups()
  assert tested == [f'3.{n}' for n in range(int(low), int(past))]
  for page in ('README.md', 'docs/quickstart.md'):
    said = re.search(r'Python 3\.(\d+) to 3\.(\d+)', (ROOT / page).read_text())
    assert said and (said[1], int(said[2])) == (low, int(past) - 1), page


def test_what_the_workflow_makes_is_in_the_makefile():
  workflow = (ROOT / '.github/workflows/test.yml').read_text()
  targets = re.findall(r'^(\w[\w-]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
  asked = re.findall(r'run: make (\w+)', workflow)
  assert asked and set(asked) <= set(targets)


def test_the_changelog_keeps_its_form():
  """Keep a Changelog 1.1.0, and what to do about a change."""
  text = (ROOT / 'CHANGELOG.md').read_text()
  assert text.startswith('# Changelog\n')
  for release in re.findall(r'^## (.*)$', text, re.MULTILINE):
    assert re.fullmatch(r'\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d', release)
  assert set(re.findall(r'^### (.*)$', text, re.MULTILINE)) <= {
      'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security', 'Upgrading'}


def test_hooks_run_what_is_here():
  found = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
  hooks = [hook for repo in found['repos'] for hook in repo['hooks']]
  for hook in hooks:
    re.compile(hook.get('files', ''))
    for word in hook['entry'].split():
      assert not word.startswith('tests/') or (ROOT / word).exists(), hook['id']
