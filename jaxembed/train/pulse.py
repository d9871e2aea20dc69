"""Signs of life of a run: where each of its processes stands, for `jaxembed status`.

    pulse-PROCESS.json   when, on which host, what it does, step, seconds of a step and
                         of waiting for data, memory; of process 0 the run's goodput

Goodput is productive time over wall time: seconds spent in steps that count (one that
is done again after a kill counts once), over those since the run was first started.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import os
import pathlib
import socket
import time
from typing import Any, TypeVar

import jax

from jaxembed.files import checked_json, whole_json
from jaxembed.files.folder import BadCheckpoint

_EVERY = 5.0  # seconds between two signs while steps are done
_NEWEST = 0.1  # weight of the newest step in the means
_T = TypeVar('_T')


@dataclasses.dataclass
class Pulse:
  """The signs of one process. Its files are written in `folder`.

  Attributes:
    step, last: done, and to be done.
  """

  folder: pathlib.Path
  step: int
  last: int
  log: Callable[[str], None] = print
  clock: Callable[[], float] = time.monotonic
  wall: Callable[[], float] = time.time

  def __post_init__(self):
    self._begun = self._since = self.clock()
    self._told, self._phase, self._stage = -_EVERY, 'starting', ''
    self._each = self._wait = None  # means of seconds
    self._waited = 0.0
    self._first = self.step
    before = read(self.folder).get(jax.process_index(), {})
    share = self.step / before['step'] if before.get('step') else 0.0
    self._productive = before.get('productive', 0.0) * min(share, 1.0)
    self._started = before.get('started') or self.wall()
    self._write()

  def phase(self, name: str, stage: str = '') -> None:
    """What is done now: training, evaluating, saving; ended, stopped or failed."""
    self._phase, self._stage = name, stage or self._stage
    self._since = self.clock()
    self._write()

  @contextlib.contextmanager
  def during(self, name: str) -> Iterator[None]:
    """A phase that ends with the context; what was done before goes on."""
    before = self._phase
    self.phase(name)
    yield
    self.phase(before)

  def waits(self, batches: Iterable[_T]) -> Iterator[_T]:
    """`batches`, with the time that each one takes to come."""
    batches = iter(batches)
    while True:
      asked = self.clock()
      try:
        batch = next(batches)
      except StopIteration:
        return
      self._waited = self.clock() - asked
      yield batch

  def done(self, step: int) -> None:
    """One more step was given to the devices."""
    now = self.clock()
    if self.step == self._first:  # it was compiled
      self.log(f'started    step {step} was given to the devices '
               f'{now - self._begun:.1f} s after the start')
    else:
      each = now - self._since
      self._productive += each
      self._each = _mean(self._each, each)
      self._wait = _mean(self._wait, self._waited)
    self.step, self._since = step, now
    if now >= self._told + _EVERY:
      self._write()

  def _write(self) -> None:
    self._told = self.clock()
    whole_json.write(self.folder / f'pulse-{jax.process_index()}.json', {
        'time': self.wall(), 'host': socket.gethostname(), 'process': os.getpid(),
        'phase': self._phase, 'stage': self._stage, 'step': self.step,
        'last': self.last, 'step_seconds': self._each, 'data_seconds': self._wait,
        'memory': [(d.memory_stats() or {}).get('bytes_in_use')
                   for d in jax.local_devices()],
        'productive': self._productive, 'started': self._started})


def _mean(before: float | None, newest: float) -> float:
  return newest if before is None else (1 - _NEWEST) * before + _NEWEST * newest


def read(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
  """The last sign of every process of a run, by its number."""
  found = {}
  for file in sorted(folder.glob('pulse-*.json')):
    number = file.stem.removeprefix('pulse-')
    try:
      if number.isdigit():
        found[int(number)] = checked_json.read(file, finite=False)
    except BadCheckpoint:
      continue
  return found
