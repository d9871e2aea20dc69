"""A launcher run in this process, as its command would run it."""

import contextlib
import dataclasses
import io
import runpy
import sys
from unittest import mock

from absl import flags


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
  before, out, err = set(flags.FLAGS), io.StringIO(), io.StringIO()
  code = 0
  try:
    with (mock.patch.object(sys, 'argv', [f'jaxembed {name}', *map(str, argv)]),
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
      runpy.run_module(f'launch.{name}', run_name='__main__')
  except SystemExit as e:
    code = e.code or 0
  finally:
    for flag in set(flags.FLAGS) - before:
      module = flags.FLAGS.find_module_defining_flag(flag)
      # Modules that stay imported keep theirs.
      if (module in (f'jaxembed {name}', 'launch.step_flag')
          or flag.startswith('config')):
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
    sys.modules.pop('config_config', None)  # the experiment's file
  return Ended(code, out.getvalue(), err.getvalue())
