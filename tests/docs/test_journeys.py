"""The documentation's commands and programs are run as they stand."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers import doc_blocks

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')])
WITH_BLOCKS = [p for p in PAGES if any(b.runs for b in doc_blocks.of_page(p))]
NOT_RUN = [(page, block) for page in PAGES for block in doc_blocks.of_page(page)
           if block.not_run]
_name = lambda p: p.relative_to(ROOT).as_posix() if isinstance(p, pathlib.Path) else ''

# One program for a page: its Python shares names, its bash a folder.
_DRIVER = """
import json, pathlib, subprocess, sys
names = {'__name__': '__main__'}
for block in json.load(open(sys.argv[1])):
  print('\\n--- line', block['line'], flush=True)
  if block['title']:
    path = pathlib.Path(block['title'])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block['text'])
  elif block['language'] == 'bash':
    subprocess.run(['bash', '-euo', 'pipefail', '-c', block['text']], check=True)
  else:
    exec(compile(block['text'], f"{sys.argv[2]}:{block['line']}", 'exec'), names)
"""


def test_blocks_are_found_with_what_holds_for_them(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text('''# A page
```python title="a.py"
steps = 1000
```

<!-- in the test: a.py -> b.py;
     1000 -> 2 -->
```bash
cp a.py c.py  # 1000
```
    ~~~
=== "a tab"

    <!-- not run: needs a pod -->

    ```bash
    jaxembed train --config=x.py \\
        --workdir='a b' && python -m launch.plan --check
    ```
```text
output
```
''')
  file, copied, pod, output = doc_blocks.of_page(page)
  assert (file.title, file.text, file.runs) == ('a.py', 'steps = 1000\n', False)
  assert copied.runs and copied.in_the_test == 'cp b.py c.py  # 2\n'
  assert copied.line == 9
  assert pod.not_run == 'needs a pod' and not pod.runs and not output.runs
  assert doc_blocks.commands(pod) == [
      ('train', ['--config=x.py', '--workdir=a b']), ('plan', ['--check'])]


@pytest.fixture(scope='module')
def desk(tmp_path_factory, minilm):
  """A folder in which a reader sits: `jaxembed` is installed, and models that pages
  name by a hub id stand in folders of that name."""
  folder = tmp_path_factory.mktemp('desk')
  (folder / 'bin').mkdir()
  for name, called in (('jaxembed', f'{sys.executable} -m jaxembed'),
                       ('python', sys.executable)):
    command = folder / 'bin' / name
    command.write_text(f'#!/bin/sh\nexec {called} "$@"\n')
    command.chmod(0o755)
  models = folder / 'models/sentence-transformers'
  models.mkdir(parents=True)
  (models / 'all-MiniLM-L6-v2').symlink_to(minilm)
  return folder


def _environment(desk) -> dict[str, str]:
  flags = os.environ.get('XLA_FLAGS', '').replace(
      '--xla_force_host_platform_device_count=8', '')
  return os.environ | {
      'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore',
      'PATH': f'{desk / "bin"}{os.pathsep}{os.environ["PATH"]}'}


@pytest.mark.thorough
@pytest.mark.parametrize('page', WITH_BLOCKS, ids=_name)
def test_a_page_can_be_followed(page, desk, tmp_path):
  (tmp_path / 'sentence-transformers').symlink_to(desk / 'models/sentence-transformers')
  blocks = [{'language': b.language, 'title': b.title, 'line': b.line,
             'text': b.in_the_test} for b in doc_blocks.of_page(page)
            if b.runs or (b.title and not b.not_run)]
  script = tmp_path / '.blocks.json'
  script.write_text(json.dumps(blocks))
  done = subprocess.run(
      [sys.executable, '-c', _DRIVER, script, page.name], cwd=tmp_path,
      env=_environment(desk), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      text=True, check=False)
  assert done.returncode == 0, f'{page.name}\n{done.stdout[-6000:]}'


# Flags are parsed by each launcher itself, in a process of its own that has loaded
# what is slow to load.
_PARSER = """
import importlib, json, os, sys
import jax, flax, optax, ml_collections, transformers
for where, launcher, arguments in json.load(open(sys.argv[1])):
  child = os.fork()
  if not child:
    sys.argv = [launcher, *arguments]
    module = importlib.import_module(f'launch.{launcher}')
    from launch import cli
    module.main = lambda: os._exit(0)
    cli.run(module.main)
    os._exit(1)
  if os.waitpid(child, 0)[1]:
    print('in', where, flush=True)
    sys.exit(f'{where}: {launcher} {arguments}')
"""


@pytest.mark.thorough
def test_flags_of_what_is_not_run_are_known(desk, tmp_path):
  found = [(f'{page.name}:{block.line}', launcher, arguments)
           for page, block in NOT_RUN if block.language == 'bash'
           for launcher, arguments in doc_blocks.commands(block)]
  for experiment in {a.removeprefix('--config=') for _, _, arguments in found
                     for a in arguments if re.fullmatch(r'--config=\w+\.py', a)}:
    shutil.copy(ROOT / 'configs/quickstart.py', tmp_path / experiment)
  script = tmp_path / '.commands.json'
  script.write_text(json.dumps(found))
  done = subprocess.run([sys.executable, '-c', _PARSER, script], cwd=tmp_path,
                        env=_environment(desk), capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('page', PAGES, ids=_name)
def test_what_is_not_run_says_why_and_the_rest_can_be_prepared(page):
  for block in doc_blocks.of_page(page):
    _ = block.in_the_test
    if block.language == 'python' and not block.title:
      compile(block.in_the_test, f'{page.name}:{block.line}', 'exec')
