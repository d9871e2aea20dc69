"""Trains, or resumes, an experiment.

  jaxembed train --config=quickstart --workdir=runs/first \\
      [--config.stages[0].optim.peak_lr=1e-4 ...]
  jaxembed train --describe [stages.optim]     the fields of an experiment

--config is a file whose get_config() returns a Config, a recipe's name, or the
manifest.json of a run, which is repeated in a new workdir.

The same command with the same workdir continues where the run was stopped, be it
by SIGKILL; SIGTERM and Ctrl-C save first. More steps, more stages and data that moved
need no word; --extend goes on with another rate, schedule, loss or other data of the
stage under way. --profile_steps=A:B traces the steps A to B into DIR/profile.

--check trains nothing: it reads the data of every stage and reports bad rows, rows that
come again, lengths, padding, and (--check_against=FOLDER,FILE) rows that evaluation
sets have too, with a picture of lengths in DIR.check.png.
"""

import re
import sys

from absl import flags
from ml_collections import config_flags

from jaxembed.train import data_check, fit, stages

from . import cli, errors, hosts, json_log, wandb_log

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file or recipe.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder or URL of the run.')
_PROFILE = flags.DEFINE_string('profile_steps', None, 'A:B, first and last to trace.')
_EXTEND = flags.DEFINE_bool(
    'extend', False, 'Go on with what the experiment changes of the stage under way.')
_CHECK = flags.DEFINE_bool('check', False, 'Report on the data; train nothing.')
_AGAINST = flags.DEFINE_list(
    'check_against', [], 'BEIR folders and files of rows to find in the training rows.')
_WANDB = flags.DEFINE_string('wandb_project', None, 'Weights & Biases, if installed.')
flags.mark_flags_as_required(['config', 'workdir'])


def main():
  if _CHECK.value:
    data_check.run(_CONFIG.value, cli.given(_WORKDIR), _AGAINST.value)
    return
  hosts.join()
  cfg, stop = _CONFIG.value, cli.stop_on_signals()
  state, _ = fit.run(
      cfg, cli.given(_WORKDIR), should_stop=stop, extend=_EXTEND.value,
      profile=_steps(_PROFILE.value), log=json_log.log(),
      on_metrics=json_log.with_metrics(
          wandb_log.on_metrics(_WANDB.value, cfg, cli.given(_WORKDIR))))
  if int(state.step) < stages.stages(cfg)[-1].last:
    sys.exit(stop())


def _steps(text: str | None) -> tuple[int, int] | None:
  """'A:B' as (A, B)."""
  if text is None:
    return None
  found = re.fullmatch(r'(\d+):(\d+)', text)
  if not found or int(found[1]) > int(found[2]):
    raise errors.WrongCommand(f'--profile_steps is {text!r}; give A:B, the first and '
                              'the last step to trace, such as 20:25')
  return int(found[1]), int(found[2])


if __name__ == '__main__':
  cli.run(main)
