"""Errors for people are one line; faults of ours keep their tracebacks."""

import subprocess
import sys

import numpy as np
import pytest

from jaxembed import config
from jaxembed.files import checked_json
from launch import errors


def _raised(f, *args, **kwargs):
  with pytest.raises(Exception) as e:
    f(*args, **kwargs)
  return e.value


def test_who_raised_it_tells_whom_it_is_for():
  assert errors.explained(_raised(open, '/no/such/file'))
  assert errors.explained(_raised(checked_json.parse, b'{', 'x'))
  assert errors.explained(_raised(config.StageConfig, steps=-1))
  assert not errors.explained(_raised(np.broadcast_to, np.zeros(3), (2,)))
  assert not errors.explained(_raised(lambda: {}['key']))


def test_an_error_is_one_line(capsys):
  with pytest.raises(SystemExit) as e:
    errors.end(ValueError('first\n  second'), 2)
  assert e.value.code == 2
  assert capsys.readouterr().err == 'error: first second\n'


def test_a_wrong_configuration_ends_without_a_traceback(tmp_path):
  (tmp_path / 'experiment.py').write_text(
      'from jaxembed import config\n\n\ndef get_config():\n'
      '  return config.Config(stages=[config.StageConfig(steps=-1)])\n')
  program = ('from ml_collections import config_flags\n'
             'from launch import cli\n'
             "config_flags.DEFINE_config_file('config')\n"
             'cli.run(lambda: None)')
  for flag, said in ((f'--config={tmp_path}/experiment.py', 'StageConfig.steps is -1'),
                     ('--nonsense', "Unknown command line flag 'nonsense'")):
    done = subprocess.run([sys.executable, '-c', program, flag], capture_output=True,
                          text=True)
    lines = [s for s in done.stderr.splitlines() if said in s or 'Traceback' in s]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith('error: ')


def test_a_line_reaches_a_log_when_it_is_printed(tmp_path):
  program = ('import os\nfrom launch import cli\n'
             "def main():\n  print('first', flush=False)\n  os._exit(7)\n"
             'cli.run(main)')
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert done.returncode == 7 and done.stdout == 'first\n'
