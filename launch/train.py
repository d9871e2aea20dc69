"""Trains, or resumes, an experiment.

  python -m launch.train --config=configs/quickstart.py --workdir=DIR \\
      [--config.stages[0].optim.peak_lr=1e-4 ...]

The same command with the same workdir continues where the run was stopped, be it
by SIGKILL; SIGTERM saves first. --config=DIR/manifest.json repeats the run in DIR in
a new workdir.
"""

from absl import flags
from ml_collections import config_flags

from jaxembed.evaluation import held_out
from jaxembed.train import loop
from launch import cli

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
flags.mark_flags_as_required(['config', 'workdir'])


def main():
  cli.join_hosts()
  cfg = _CONFIG.value
  loop.train(cfg, _WORKDIR.value, evaluate=held_out.scorer(cfg.eval),
             stop=cli.stop_on_sigterm())


if __name__ == '__main__':
  cli.run(main)
