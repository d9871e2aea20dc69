"""Lock of a place in an object store: an object that names its holder and beats.

A holder writes a new beat every `BEAT` seconds. Who finds the lock held watches it: a
beat means a holder that lives; none for `STALE` seconds, by the watcher's own clock,
or a process of this host that is gone, means one that has ended.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import socket
import threading
import time
import uuid

from jaxembed.files import alone
from jaxembed.files.url import Objects

BEAT, STALE = 10.0, 60.0  # seconds


class Lock:
  """A lock that is held. `lost`: another process took it over."""

  def __init__(self, objects: Objects, name: str):
    self._objects, self._name, self._token = objects, name, uuid.uuid4().hex
    self._beats, self._end, self.lost = 0, threading.Event(), False
    self._thread = threading.Thread(target=self._beat, daemon=True)

  def take(self, create: bool) -> None:
    """Writes the lock. Raises FileExistsError with `create`, if it is another's."""
    try:
      self._objects.write(self._name, self._content(), create=create)
    except FileExistsError:  # or ours, of an attempt whose answer was lost
      if not self.ours():
        raise

  def start(self) -> None:
    """Begins to beat."""
    self._thread.start()

  def leave(self) -> None:
    """Removes the lock, if it is still ours."""
    self._end.set()
    if self._thread.is_alive():
      self._thread.join()
    if not self.lost and self.ours():
      self._objects.remove(self._name)

  def ours(self) -> bool:
    """Whether the lock names this holder."""
    return self._holder().get('token') == self._token

  def _content(self) -> bytes:
    self._beats += 1
    return json.dumps({'host': socket.gethostname(), 'process': os.getpid(),
                       'token': self._token, 'beat': self._beats}).encode()

  def _holder(self) -> dict:
    return holder(self._objects, self._name)

  def _beat(self) -> None:
    while not self._end.wait(BEAT):
      with contextlib.suppress(OSError):  # a later beat may be written
        if self._holder().get('token') not in (self._token, None):
          self.lost = True
          return
        self._objects.write(self._name, self._content())


def holder(objects: Objects, name: str) -> dict:
  """What a lock says of its holder; {} without one."""
  try:
    found = json.loads(objects.read(name))
  except (FileNotFoundError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def held(objects: Objects, name: str, what: str, remedy: str,
         log: Callable[[str], None] = print) -> Iterator[Lock]:
  """Holds the lock `name` below a URL.

  Raises:
    BlockingIOError: another process holds it; its host and number are named.
  """
  lock = Lock(objects, name)
  try:
    lock.take(create=True)
  except FileExistsError:
    _watch(objects, name, what, remedy, log)
    lock.take(create=False)
    time.sleep(1.0)  # of two that take over at once the later one has it
    if not lock.ours():
      raise _refused(holder(objects, name), what, remedy) from None
  lock.start()
  try:
    yield lock
  finally:
    lock.leave()


def _watch(objects: Objects, name: str, what: str, remedy: str, log) -> None:
  """Returns once the holder is known to have ended."""
  first, end, told = holder(objects, name), time.monotonic() + STALE, False
  while first:
    if alone.gone(str(first.get('host')), int(first.get('process', 0))):
      return
    if not told:
      log(f'waiting    up to {STALE:.0f} s to see whether process '
          f'{first.get("process")} on host {first.get("host")}, which holds {what}, '
          'still lives')
      told = True
    if time.monotonic() > end:
      log(f'taken over {what}: no sign of that process for {STALE:.0f} s')
      return
    time.sleep(min(1.0, STALE / 10))
    now = holder(objects, name)
    if now and now != first:
      raise _refused(now, what, remedy)
    first = now and first


def _refused(found: dict, what: str, remedy: str) -> alone.Held:
  return alone.Held(found.get('host', 'unknown'), found.get('process', 'unknown'), what,
                    remedy)
