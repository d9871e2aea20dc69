"""A launcher run in this process, as its command would run it."""

import contextlib
import dataclasses
import io
import os
import pathlib
import runpy
import subprocess
import sys
from unittest import mock

from absl import flags

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a launcher ended: its exit code, and what it printed."""

  code: int
  out: str
  err: str

  @property
  def error(self) -> str:
    """The line for a person, of which there must be one and no traceback."""
    lines = self.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: '), self.err
    return lines[0].removeprefix('error: ')


def run(name: str, *argv: str) -> Ended:
  """`jaxembed NAME ARGV`. An exception that a person would see is raised here."""
  out, err, code = io.StringIO(), io.StringIO(), 0
  with _flags_of_a_new_process():
    try:
      with (mock.patch.object(sys, 'argv', [f'jaxembed {name}', *map(str, argv)]),
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
        runpy.run_module(f'launch.{name}', run_name='__main__')
    except SystemExit as e:
      code = e.code or 0
  return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _flags_of_a_new_process():
  """Without the flags of launchers that were imported, which come back afterwards;
  those that are defined within go."""
  def ours():
    found = ((f, flags.FLAGS.find_module_defining_flag(f)) for f in list(flags.FLAGS))
    return {f: (flags.FLAGS[f], module) for f, module in found
            if module not in ('launch.hosts', 'launch.json_log') and (
                f.startswith('config') or not module
                or module.startswith(('launch.', 'jaxembed ')))}

  before = ours()
  for flag in before:
    delattr(flags.FLAGS, flag)
  try:
    yield
  finally:
    for flag in ours():
      delattr(flags.FLAGS, flag)
    for flag, module in before.values():
      flags.DEFINE_flag(flag, module_name=module)
    flags.FLAGS.unparse_flags()
    sys.modules.pop('config_config', None)  # the experiment's file


def small_experiment_twice(name: str, data: pathlib.Path, workdir: pathlib.Path
                           ) -> tuple[str, str]:
  """(the table that an experiment's small form prints, all of a second run's output),
  each run in a process of its own, the second in the workdir of the first."""
  command = [sys.executable, '-m', f'launch.{name}', '--small',
             f'--config=configs/{name}_cpu.py:{data}', f'--workdir={workdir}']
  environment = os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  first, again = (subprocess.run(
      command, cwd=ROOT, env=environment, capture_output=True, text=True,
      check=True).stdout for _ in range(2))
  return first.split('\n\n')[-1], again
