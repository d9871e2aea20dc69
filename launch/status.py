"""Says how a run stands: step, loss, time left, last save, stalled or not.

  jaxembed status --workdir=DIR_OR_URL [--json] [--nopicture]

state is running; stalled (no sign of life for ten steps, at least a minute); killed
(nobody works on it and it has not said that it ended: the same command goes on with
it); stopped (by a notice: likewise); failed (by an error, which its log has); or ended.
"""

import json

from absl import flags

from jaxembed.train import report, status

from . import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder or URL of the run.')
_JSON = flags.DEFINE_bool('json', False, 'One line of JSON.')
_PICTURE = flags.DEFINE_bool('picture', True, "Draw the run's curves (report.png).")
flags.mark_flag_as_required('workdir')


def main():
  found = status.of(cli.given(_WORKDIR))
  if _JSON.value:
    print(json.dumps(found))
    return
  print(status.text(found))
  if _PICTURE.value and found['loss'] is not None:
    print(f'picture    {report.plot(cli.given(_WORKDIR), found["name"])}')


if __name__ == '__main__':
  cli.run(main)
