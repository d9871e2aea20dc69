"""Processes of a run on several hosts: compared before the first step, watched after.

What they say to each other goes through the store of names that jax.distributed keeps
at process 0, not through the devices, which wait for a host that died for ever.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

BEAT, GONE = 2.0, 20.0  # seconds: between signs of life; without one a host is gone
_COME = 600.0  # seconds that hosts may come one after the other
_AHEAD = 3  # steps: none is further before the others, for it reads what they add up
_NUMBER = itertools.count()  # of exchanges: all processes make the same ones
# What an error of a collective or of the coordinator looks like, on every platform.
_LOST = jax.errors.JaxRuntimeError, RuntimeError, OSError


def _store() -> Any:
  """The store of names; jax has no public way to it."""
  from jax._src import distributed
  return distributed.global_state.client


def compare(what: str, facts: Callable[[], Mapping[str, Any]]) -> list[str]:
  """The hosts of all processes, once all have the same `facts()`, plain data.

  Raises:
    ValueError: a process has others: it, its host, and what differs are named.
    OSError: a process did not come.
  """
  if jax.process_count() == 1:
    return [socket.gethostname()]
  store, prefix = _store(), f'jaxembed/{next(_NUMBER)}/'
  mine = {'host': socket.gethostname(), 'facts': dict(_leaves(facts()))}
  store.key_value_set(f'{prefix}{jax.process_index()}', json.dumps(mine))
  found: list[dict] = []
  for process in range(jax.process_count()):
    try:
      found.append(json.loads(store.blocking_key_value_get(
          f'{prefix}{process}', int(_COME * 1000))))
    except jax.errors.JaxRuntimeError as e:
      raise OSError(f'process {process} did not say its {what} within {_COME:.0f} s: '
                    'it has ended, or was not started; its own log says why') from e
  lines = [line for process, its in enumerate(found)
           if (line := _differences(process, its, found[0]))]
  if lines:
    raise ValueError(f'the hosts do not agree on {what}; nothing was trained: '
                     f'{"; ".join(lines)}. Start all with the same command, code and '
                     'data')
  return [its['host'] for its in found]


def agreed(should_stop: Callable[[], bool | int]) -> Callable[[int], bool]:
  """Whether to stop after a step, of all processes the same answer: once one of them
  `should_stop()` (a notice may come to one host alone), all do a few steps later."""
  if jax.process_count() == 1:
    return lambda step: bool(should_stop())
  store, name = _store(), f'jaxembed/{next(_NUMBER)}/stop'

  def asked() -> int | None:
    try:
      return int(store.key_value_try_get(name))
    except jax.errors.JaxRuntimeError as e:
      if 'NOT_FOUND' in str(e):
        return None
      raise

  def answer(step: int) -> bool:
    last = asked()
    if last is None and should_stop():
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
        store.key_value_set(name, str(step + _AHEAD))
      last = asked()
    return last is not None and step >= last

  return answer


def _differences(process: int, its: dict, first: dict) -> str:
  names = dict.fromkeys([*first['facts'], *its['facts']])
  told = [f'{n} is {its["facts"].get(n)!r:.100}, not {first["facts"].get(n)!r:.100}'
          for n in names if its['facts'].get(n) != first['facts'].get(n)]
  if not told:
    return ''
  more = f' (and {len(told) - 3} more)' if len(told) > 3 else ''
  return (f'process {process} (host {its["host"]}) differs from process 0 (host '
          f'{first["host"]}): {", ".join(told[:3])}{more}')


def _leaves(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """(path, leaf) of nested plain data."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      yield from _leaves(inner, f'{path}.{key}' if path else str(key))
  elif isinstance(value, list | tuple):
    for i, inner in enumerate(value):
      yield from _leaves(inner, f'{path}[{i}]')
  else:
    yield path, value


class _Watch:
  """The thread that gives signs of life, and misses those of others."""

  def __init__(self, names: list[str]):
    self._hosts, self._store, self._end = names, _store(), threading.Event()
    self._prefix = f'jaxembed/{next(_NUMBER)}/'
    now = time.monotonic()
    # process -> its last sign, and when it came
    self._signs: dict[int, tuple[str, float]] = {
        i: ('', now) for i in range(len(names)) if i != jax.process_index()}
    self.thread = threading.Thread(target=self._watch, daemon=True)
    self.thread.start()

  def leave(self, well: bool) -> None:
    """No more signs are given. After an error others are to miss them, and to end."""
    self._end.set()
    self.thread.join(GONE)
    if well:
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._say('done')

  def _say(self, sign: str) -> None:
    self._store.key_value_set(f'{self._prefix}{jax.process_index()}', sign,
                              allow_overwrite=True)

  def _watch(self) -> None:
    reached, beat = time.monotonic(), 0
    while not self._end.wait(BEAT):
      beat += 1
      try:
        self._say(str(beat))
        heard = {i: self._read(i) for i in self._signs}
        reached = time.monotonic()
      except jax.errors.JaxRuntimeError:
        if time.monotonic() > reached + GONE:
          self._tell(0, ', which coordinates,')
        continue
      now = time.monotonic()
      for i, sign in heard.items():
        if sign not in (self._signs[i][0], 'done'):
          self._signs[i] = sign, now
        elif sign != 'done' and now > self._signs[i][1] + GONE:
          self._tell(i)

  def _read(self, process: int) -> str:
    try:
      return self._store.key_value_try_get(f'{self._prefix}{process}')
    except jax.errors.JaxRuntimeError as e:
      if 'NOT_FOUND' in str(e):
        return ''
      raise

  def _tell(self, process: int, what: str = '') -> NoReturn:
    print(f'error: process {process} on host {self._hosts[process]}{what} has given no '
          f'sign of life for {GONE:.0f} s; this process ends too. What was saved '
          'stays: start all again, and the same command continues',
          file=sys.stderr, flush=True)
    os._exit(1)  # the main thread may wait for the devices of that host for ever


@contextlib.contextmanager
def watched(names: list[str], log: Callable[[str], None] = print) -> Iterator[None]:
  """Ends this process, with a line that says which, once another one has died.

  names: of the hosts, as `compare` returns them. An error that the death of another
  process may have caused is held until it is known whose it was. When process 0 dies,
  jax itself ends the others, at once, and says that the leader has died.
  """
  if len(names) == 1:
    yield
    return
  where = ', '.join(f'{i} on {name}' for i, name in enumerate(names[:64]))
  log(f'hosts      {len(names)} processes: {where}. Process 0 coordinates; when this '
      'leader dies the others end at once')
  sys.stdout.flush()  # jax would end this process without what it has not written
  watch, well = _Watch(names), False
  try:
    yield
    well = True
  except _LOST:
    watch.thread.join(GONE + 3 * BEAT)
    raise
  finally:
    watch.leave(well)
