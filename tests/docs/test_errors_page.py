"""The catalogue of errors: each command says what the page says it does."""

import pathlib
import re
import shlex

import pytest

from launch import commands, errors
from tests.helpers import launcher

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs/errors.md').read_text()
SAID = re.findall(r'^\$ jaxembed (.*)\nerror: (.*)\n(?:# exit code (\d))?', PAGE,
                  re.MULTILINE)


def _run(line: str, monkeypatch, capsys) -> tuple[str, int]:
  """(the error's line, the exit code) of a command that goes wrong."""
  name, *argv = shlex.split(line)
  if name in commands.names():
    ended = launcher.run(name, *argv)
    return ended.error, ended.code
  monkeypatch.setattr('sys.argv', ['jaxembed', name, *argv])
  with pytest.raises(SystemExit) as ended:
    commands.main()
  return capsys.readouterr().err.strip().removeprefix('error: '), ended.value.code


def test_the_page_has_commands():
  assert len(SAID) == PAGE.count('\n$ ') > 10


@pytest.mark.thorough
@pytest.mark.parametrize('line,said,code', SAID, ids=[line for line, *_ in SAID])
def test_a_command_says_what_the_page_says(line, said, code, tmp_path, monkeypatch,
                                           capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'rows.jsonl').write_text('{"query": "a", "positiv": "b"}\n')
  (tmp_path / 'taken.json').write_text('{}')
  told, ended = _run(line, monkeypatch, capsys)
  pattern = '.*'.join(map(re.escape, said.split('...')))
  assert ended == int(code or 2) and re.fullmatch(pattern, told), told


def test_every_exit_code_is_explained():
  listed = set(map(int, re.findall(r'^\| (\d+) \|', PAGE, re.MULTILINE)))
  assert listed == {0, errors.REFUSED, errors.WRONG_COMMAND, errors.INTERRUPTED,
                    errors.TERMINATED}
