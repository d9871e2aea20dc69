"""A run whose workdir lies in an object store: worked on here, sent while it goes on.

The store is the truth: what it holds is brought here at the start. A checkpoint that is
whole here is sent at once, behind the other files as they are then, and counts there
with its mark; so a process that is killed at any moment leaves a run that goes on.

Several processes each work in a folder of their own, and send their shares; process 0
holds the lock and writes the marks (files/mirror.py).
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import threading
import time

import jax

from jaxembed import shares
from jaxembed.files import place, remote_lock, url as url_lib
from jaxembed.files.alone import alone
from jaxembed.files.mirror import Mirror
from jaxembed.files.url import Objects
from jaxembed.train import hosts

_LOOK, _SEND = 0.5, 30.0  # seconds: between looks for a checkpoint; between other sends
_COME = 20.0  # seconds that shares of others are waited for after an error
_REMEDY = 'choose another --workdir'
_OPEN: dict[pathlib.Path, 'RemoteRun'] = {}  # by the folder they are worked on in


def may_drop(folder: pathlib.Path) -> Callable[[int], bool]:
  """Asked before a checkpoint of the run in `folder` is removed: not while it is being
  copied, for half of one would be sent."""
  run = _OPEN.get(folder)
  return run.holds.may_drop if run else lambda step: True


def name(folder: pathlib.Path) -> str:
  """What all processes call the run in `folder`: its URL, where it has one."""
  run = _OPEN.get(folder)
  return run.url if run else str(folder)


class RemoteRun:
  """The run at a URL. `folder`: where it is worked on."""

  def __init__(self, mirror: Mirror, lock: remote_lock.Lock | None,
               log: Callable[[str], None] = print):
    """lock: the one that keeps others out; None: process 0 holds it."""
    self.folder, self._mirror, self._lock = mirror.folder, mirror, lock
    self.holds, self.url = mirror.holds, mirror.objects.url
    self._log, self._error = log, None
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._send, daemon=True)
    self._thread.start()

  @property
  def failed(self) -> bool:
    """Whether the run must stop: nothing can be sent any more."""
    return self._error is not None or self._lost

  @property
  def _lost(self) -> bool:
    return self._lock is not None and self._lock.lost

  def finish(self, well: bool = True) -> None:
    """Sends what is left.

    well: no error ends the run, so that all processes come here.

    Raises:
      OSError: it cannot be sent; where it lies is named.
    """
    self._end.set()
    self._thread.join()
    if self._lost:
      raise OSError(
          f'{self.url} was taken over by another process, since this one gave no sign '
          f'for {remote_lock.STALE:.0f} s; what it did since then lies in '
          f'{self.folder} and was not sent')
    try:
      first = jax.process_index() == 0
      if not first:
        self._mirror.push()
      if well:  # process 0 sends, and marks, once the others have sent their shares
        hosts.compare('shares of the last checkpoint', dict)
      if first:
        end = time.monotonic() + (0 if well or jax.process_count() == 1 else _COME)
        self._mirror.push()
        while self._mirror.unsent() and time.monotonic() < end:
          time.sleep(_LOOK)
          self._mirror.push()
      if self._mirror.unsent():
        raise OSError(f'{self.url}: a checkpoint cannot be read here'
                      + ('' if well else ', or other processes did not send theirs'))
    except OSError as e:
      raise OSError(f'{e}. What was trained since the last checkpoint there lies in '
                    f'{self.folder}; the same command goes on from the last one in '
                    f'{self.url}') from (self._error or e)

  def _send(self) -> None:
    """The thread that sends."""
    sent = time.monotonic()
    while not self._end.wait(_LOOK):
      if not self._mirror.unsent() and time.monotonic() < sent + _SEND:
        continue
      try:
        self._mirror.push()
        sent = time.monotonic()
      except OSError as e:
        self._error = e
        self._log(f'remote     the run stops, for nothing can be sent: {e}')
        return


@contextlib.contextmanager
def opened(path: str | os.PathLike, log: Callable[[str], None]) -> Iterator[RemoteRun]:
  """The run at a URL, brought here and kept from others; sent at the end.

  Raises:
    ValueError: no place in a bucket; the processes do not name the same one.
    BlockingIOError: another process trains it; its host and number are named.
    OSError: the store cannot be reached, read or written.
  """
  url, me = url_lib.checked(url_lib.of(path) or str(path)), jax.process_index()
  objects = Objects(url)
  folder = place.staging(url, f'process {me}' if jax.process_count() > 1 else '')
  with contextlib.ExitStack() as held:
    held.enter_context(alone(folder.with_name('run.url.lock'), url, _REMEDY))
    lock = None
    mirror = Mirror(objects, folder, me, jax.process_count())
    if me == 0:
      lock = held.enter_context(
          remote_lock.held(objects, 'run.lock', url, _REMEDY, log))
      mirror.pull(repair=True)
    hosts.compare('--workdir', lambda: {'workdir': url})
    if me:
      mirror.pull()
    for step in (folder / 'checkpoints').glob('[0-9]*'):
      shares.join(step)
    log(f'remote     {url} is worked on in {folder}; a checkpoint counts once it is '
        'there')
    run, well = RemoteRun(mirror, lock, log), False
    _OPEN[folder] = run
    try:
      yield run
      well = True
    finally:
      del _OPEN[folder]
      begun = time.perf_counter()
      run.finish(well)
      log(f'remote     all is in {url}; the last of it took '
          f'{time.perf_counter() - begun:.1f} s')
