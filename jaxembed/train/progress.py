"""Progress of a stage: a bar on a terminal, elsewhere one line a minute."""

from collections.abc import Callable
import datetime
import pathlib
import sys
import time

import jax
import tqdm

_FORMAT = '{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}'
_EVERY = 60.0  # seconds between two lines


class Progress:
  """Steps done, the time that is left, and what the caller has to tell of them.

  The time left is by the mean of the steps of this process after the first one, which
  compiles, evaluations and checkpoints included.

  Args:
    name: of the stage.
    start, last: the steps at which this process begins, and the stage ends.
    log: takes lines, where there is no terminal.
    silent: of processes that are not the first.
    terminal: whether stderr is one; None: as it is.
    clock: seconds.
  """

  def __init__(self, name: str, start: int, last: int, log: Callable[[str], None], *,
               silent: bool = False, terminal: bool | None = None,
               clock: Callable[[], float] = time.monotonic):
    self._name, self._now, self._start, self._last = name, start, start, last
    self._log, self._clock, self._silent = log, clock, silent
    terminal = sys.stderr.isatty() if terminal is None else terminal
    self._bar = tqdm.tqdm(
        total=last, initial=start, desc=name, bar_format=_FORMAT,
        disable=silent) if terminal else None
    self._first = self._told = clock()
    self._figures, self._told_step = '', start

  def update(self) -> None:
    """One more step is done."""
    self._now += 1
    if self._now == self._start + 1:
      self._first = self._clock()  # the steps behind it are of the usual length
    if self._bar is not None:
      self._bar.set_postfix_str(self._rest(), refresh=False)
      self._bar.update()
    elif self._clock() - self._told >= _EVERY:
      self._line()

  def set_postfix_str(self, text: str) -> None:
    """What else to tell, until it is told anew: loss, tokens per second."""
    self._figures = text
    if self._bar is None and self._now == self._start + 1:
      self._line()  # the first step: it was compiled, and runs

  def write(self, text: str) -> None:
    """A line on standard output, beside the progress."""
    if self._silent:
      return
    if self._bar is None:
      self._log(text)
    else:
      tqdm.tqdm.write(text)

  def close(self) -> None:
    """Ends the bar; elsewhere tells where it ended."""
    if self._bar is not None:
      self._bar.close()
    elif self._now > self._told_step:
      self._line()

  def _line(self) -> None:
    self._told, self._told_step = self._clock(), self._now
    if not self._silent:
      self._log(f'step       {self._now} of {self._last} ({self._name}), '
                f'{self._rest()}')

  def _rest(self) -> str:
    """Figures, memory and the time that is left."""
    parts = [self._figures, memory(), self._left()]
    return ', '.join(filter(None, parts))

  def _left(self) -> str:
    done = self._now - self._start - 1
    if done < 1 or self._now >= self._last:
      return ''
    each = (self._clock() - self._first) / done
    left = datetime.timedelta(seconds=round(each * (self._last - self._now)))
    return f'{each:.2g} s a step, {left} left'


def memory() -> str:
  """Memory in use: of the first device here; of this process where it is the CPU."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if used := stats.get('bytes_in_use'):
    most = stats.get('bytes_limit')
    return f'{used / 1e9:.1f}{f" of {most / 1e9:.0f}" if most else ""} GB'
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    return ''
  kilobytes = status.read_text().partition('VmRSS:')[2].split()[:1]
  return f'{int(kilobytes[0]) / 1e6:.1f} GB' if kilobytes else ''
