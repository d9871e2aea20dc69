"""Trains, or resumes, an experiment.

  python -m launch.train --config=configs/quickstart.py --workdir=DIR \\
      [--config.stages[0].optim.peak_lr=1e-4 ...]

The same command with the same workdir continues where the run was stopped, be it
by SIGKILL; SIGTERM and Ctrl-C save first. More steps, more stages and data that moved
need no word; --extend goes on with another rate, schedule, loss or other data of the
stage under way (train/changes.py). --config=DIR/manifest.json repeats the run in DIR in
a new workdir. --profile_steps=A:B traces the steps A to B into DIR/profile.
"""

import re

from absl import flags
from ml_collections import config_flags

from jaxembed.train import fit

from . import cli, wandb_log

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file or recipe.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_PROFILE = flags.DEFINE_string('profile_steps', None, 'A:B, first and last to trace.')
_EXTEND = flags.DEFINE_bool(
    'extend', False, 'Go on with what the experiment changes of the stage under way.')
_WANDB = flags.DEFINE_string('wandb_project', None, 'Weights & Biases, if installed.')
flags.mark_flags_as_required(['config', 'workdir'])


def main():
  cli.join_hosts()
  cfg = _CONFIG.value
  fit.run(cfg, _WORKDIR.value, should_stop=cli.stop_on_signals(),
          extend=_EXTEND.value, profile=_steps(_PROFILE.value),
          on_metrics=wandb_log.on_metrics(_WANDB.value, cfg, _WORKDIR.value))


def _steps(text: str | None) -> tuple[int, int] | None:
  """'A:B' as (A, B)."""
  if text is None:
    return None
  found = re.fullmatch(r'(\d+):(\d+)', text)
  if not found or int(found[1]) > int(found[2]):
    raise ValueError(f'--profile_steps is {text!r}; give A:B, the first and the last '
                     'step to trace, such as 20:25')
  return int(found[1]), int(found[2])


if __name__ == '__main__':
  cli.run(main)
