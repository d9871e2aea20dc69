"""Averages checkpoints of one or several runs into a new workdir.

  jaxembed average --workdir=RUN [--workdir=RUN2 ...] --target=DIR --last=3

The result is evaluated, exported and trained from like any run.
"""

from absl import flags

from jaxembed.train import average

from . import cli

_WORKDIRS = flags.DEFINE_multi_string('workdir', None, 'Folder of a run; repeatable.')
_TARGET = flags.DEFINE_string('target', None, 'Folder of the mean; new.')
_LAST = flags.DEFINE_integer('last', 1, 'Checkpoints per run, the newest ones.',
                             lower_bound=1)
flags.mark_flags_as_required(['workdir', 'target'])


def main():
  parts = average.average(cli.given(_WORKDIRS), cli.given(_TARGET), _LAST.value)
  for run, step in parts:
    print(f'averaged   {run}, step {step}')
  print(f'written    {_TARGET.value}')


if __name__ == '__main__':
  cli.run(main)
