"""Ctrl-C and SIGTERM as requests to stop, which training grants after a step."""

from collections.abc import Callable
import signal
import sys

from . import errors

_CODES: dict[int, int] = {
    signal.SIGINT: errors.INTERRUPTED, signal.SIGTERM: errors.TERMINATED}


def stop_on_signals() -> Callable[[], int]:
  """A function that answers whether SIGTERM (a preemption notice) or the first Ctrl-C
  has come: 0 if not, otherwise the exit code.

  Either says what will happen; a second Ctrl-C interrupts.
  """
  come: list[int] = []

  def asked(number: int, _):
    come.append(_CODES[number])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = 'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'
    print(f'\n{name}: stopping after the step in flight, which is saved; Ctrl-C '
          f'{"again " if number == signal.SIGINT else ""}stops at once',
          file=sys.stderr, flush=True)

  for number in _CODES:
    signal.signal(number, asked)
  return lambda: come[0] if come else 0
