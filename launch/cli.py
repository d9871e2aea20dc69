"""Entry point shared by the launchers: hosts, signals, errors without a traceback."""

from collections.abc import Callable
import signal
import sys
import threading

from absl import app, flags, logging
import jax

from . import arguments, errors

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
  """absl's app.run. An error that is meant for people is one sentence, and exit 1;
  2 where flags or the configuration are wrong. Any other keeps its traceback.

  --config=MANIFEST.json means the experiment of that run, --config=NAME a recipe.
  """
  def wrapped(argv):
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)  # libraries chat at INFO
    try:
      main()
    except Exception as e:
      if not errors.for_people(e):
        raise
      errors.end(e, 1)

  app.run(wrapped, arguments.experiments(sys.argv), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """absl's flags, and the experiment that --config names."""
  try:
    # config_flags looks for its fields in sys.argv itself.
    sys.argv[1:] = argv[1:] = [arguments.of_config(arg) for arg in argv[1:]]
    arguments.check_experiments(argv)
    left = flags.FLAGS(argv, known_only=False)
    if 'config' in flags.FLAGS:
      _ = flags.FLAGS['config'].value  # asked for, a file that failed says so
  except (flags.Error, ValueError, OSError, LookupError, AttributeError,
          TypeError) as e:
    errors.end(errors.first_cause(e), 2)
  return left


def stop_on_signals() -> Callable[[], bool]:
  """A function that answers whether SIGTERM (a preemption notice) or Ctrl-C has come.

  The first Ctrl-C is such a notice, and says so; the second one interrupts.
  """
  told = threading.Event()

  def interrupted(*_):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told.set()
    print('Ctrl-C: saving after the step in flight; once more to stop at once',
          file=sys.stderr)

  signal.signal(signal.SIGTERM, lambda *_: told.set())
  signal.signal(signal.SIGINT, interrupted)
  return told.is_set
