"""Draws a run, under way or finished: report.png and report.html in its folder.

  jaxembed report --workdir=DIR

The page needs no other file: curves, scores with their intervals, the data, the
settings, and the environment of every start. A run that ends writes both by itself.
"""

from absl import flags

from jaxembed.train import report

from . import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)


def main():
  print(report.write(_WORKDIR.value))


if __name__ == '__main__':
  cli.run(main)
