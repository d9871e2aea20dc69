"""The command `jaxembed`: what it lists, what travels in a wheel."""

import ast
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from launch import arguments, commands
from tests.helpers import launcher

ROOT = pathlib.Path(__file__).parents[2]


def _is_launcher(path: pathlib.Path) -> bool:
  return any(isinstance(node, ast.FunctionDef) and node.name == 'main'
             for node in ast.parse(path.read_text()).body)


def test_every_launcher_is_a_command():
  made = {p.stem for p in (ROOT / 'launch').glob('*.py') if _is_launcher(p)}
  assert made - {'commands'} == set(commands.names())


def test_alone_it_lists_each_command_in_one_line(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['jaxembed'])
  commands.main()
  lines = capsys.readouterr().out.splitlines()
  for name in commands.names():
    told, = (line.split(maxsplit=1) for line in lines if line.split()[:1] == [name])
    assert len(told[1]) > 10
  assert max(map(len, lines)) <= 100


def test_a_reader_who_leaves_early_is_no_error():
  reads, writes = os.pipe()
  os.close(reads)  # as `| head` does, whenever it likes
  done = subprocess.run([sys.executable, '-m', 'jaxembed'], cwd=ROOT, stdout=writes,
                        stderr=subprocess.PIPE, text=True, check=False)
  os.close(writes)
  assert (done.returncode, done.stderr) == (0, '')


def test_a_command_that_is_none_is_told_with_the_nearest(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['jaxembed', 'evalute', '--model=x'])
  with pytest.raises(SystemExit) as e:
    commands.main()
  assert e.value.code == 2
  assert capsys.readouterr().err == (
      "error: jaxembed has no command 'evalute'; did you mean 'evaluate'?\n")


def test_a_recipe_is_named_anywhere_and_a_file_goes_before_it(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  recipe = str(ROOT / 'configs' / 'quickstart.py')
  for given in ('quickstart', 'quickstart.py', 'configs/quickstart.py'):
    assert arguments.experiment(given) == recipe
  (tmp_path / 'quickstart.py').write_text('')
  assert arguments.experiment('quickstart.py') == 'quickstart.py'
  with pytest.raises(ValueError, match="did you mean 'quickstart'"):
    arguments.check_experiments(['train', '--config', 'quikstart'])


@pytest.mark.thorough
def test_the_quickstart_is_short_and_ends_with_scores_before_and_after(
    tmp_path, minilm):
  pytest.importorskip('sentence_transformers')
  ended = launcher.run(
      'quickstart', f'--workdir={tmp_path}/run', '--config.stages[0].steps=2',
      '--config.stages[0].data.batch_size=8', '--config.eval.limit=20',
      '--config.stages[0].data.sources[0].limit=50')
  assert ended.code == 0, ended.err
  lines = [*ended.out.splitlines(), *ended.err.splitlines()]
  assert len(lines) < 55 and max(map(len, lines)) < 250
  header = next(line for line in lines if line.startswith('score '))
  assert header.split()[1:5] == ['step', '0', 'step', '2']
  assert any(line.startswith('ndcg@10 ') for line in lines)
  assert (tmp_path / 'run/report.html').is_file()


@pytest.mark.thorough
def test_a_wheel_holds_launchers_and_recipes_and_finds_them(tmp_path):
  """Every file of the three folders is in it, and the command runs without a checkout.
  """
  pytest.importorskip('setuptools')
  source = tmp_path / 'source'  # a build leaves files beside its source
  source.mkdir()
  listed = subprocess.run(
      ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, check=True,
      capture_output=True, text=True).stdout.split()
  for name in listed:
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes((ROOT / name).read_bytes())
  subprocess.run([sys.executable, '-c', 'from setuptools import build_meta\n'
                  f'build_meta.build_wheel({str(tmp_path)!r})'], cwd=source,
                 check=True, capture_output=True)
  wheel, = tmp_path.glob('*.whl')
  want = {name if name.startswith('jaxembed/') else f'jaxembed/{name}'
          for name in listed if name.endswith('.py')
          and name.split('/')[0] in ('jaxembed', 'launch', 'configs')}
  with zipfile.ZipFile(wheel) as packed:
    assert want <= set(packed.namelist())
    packed.extractall(tmp_path / 'site')
  program = ('import sys; from jaxembed import __main__\n'
             "assert __main__.launchers() == 'jaxembed.launch'\n"
             "sys.argv = ['jaxembed', 'train', '--config=quickstart', '--nonsense']\n"
             '__main__.main()')
  done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path / 'site',
                        capture_output=True, text=True)
  assert done.returncode == 2 and "flag 'nonsense'" in done.stderr
