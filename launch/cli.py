"""What every launcher shares: errors a person can act on, without a traceback."""

import signal
import sys
import threading

from absl import app, logging

_MEANT_FOR_PEOPLE = (ValueError, OSError, FloatingPointError)


def run(main):
  """absl's app.run; an error that names its remedy is printed alone, exit 1."""
  def wrapped(argv):
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)  # libraries chat at INFO
    try:
      main()
    except _MEANT_FOR_PEOPLE as e:
      print(f'error: {e}', file=sys.stderr)
      sys.exit(1)

  app.run(wrapped)


def stop_on_sigterm():
  """A function that answers whether SIGTERM has come (a preemption notice)."""
  told = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: told.set())
  return told.is_set
