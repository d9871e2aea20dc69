"""What every launcher shares: errors a person can act on, without a traceback."""

import pathlib
import re
import signal
import sys
import threading

from absl import app, flags, logging
import jax

_MEANT_FOR_PEOPLE = (ValueError, OSError, FloatingPointError)

_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, "HOST:PORT of process 0, when several hosts work together; "
    "'auto' where the platform knows (TPU pods, Slurm).")
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')


def join_hosts():
  """Makes the devices of all processes one, if --coordinator asks for it."""
  if _COORDINATOR.value == 'auto':
    jax.distributed.initialize()
  elif _COORDINATOR.value:
    if _PROCESSES.value is None or _PROCESS.value is None:
      raise ValueError('--coordinator=HOST:PORT needs --num_processes and '
                       "--process_id; or use 'auto' where the platform knows")
    jax.distributed.initialize(
        _COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def run(main):
  """absl's app.run; an error that names its remedy is printed alone, exit 1.

  --config=MANIFEST.json means the experiment of that run.
  """
  def wrapped(argv):
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)  # libraries chat at INFO
    try:
      main()
    except _MEANT_FOR_PEOPLE as e:
      print(f'error: {e}', file=sys.stderr)
      sys.exit(1)

  app.run(wrapped, _repeats(sys.argv))


def _repeats(argv: list[str]) -> list[str]:
  """`argv` with --config=X.json as --config=configs/repeat.py:X.json."""
  script = pathlib.Path(__file__).parents[1] / 'configs' / 'repeat.py'
  found = []
  for before, arg in zip(['', *argv], argv):
    given = re.fullmatch(r'(--?config=)(.*\.json)', arg)
    if given:
      arg = f'{given[1]}{script}:{given[2]}'
    elif before in ('-config', '--config') and arg.endswith('.json'):
      arg = f'{script}:{arg}'
    found.append(arg)
  return found


def stop_on_sigterm():
  """A function that answers whether SIGTERM has come (a preemption notice)."""
  told = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: told.set())
  return told.is_set
