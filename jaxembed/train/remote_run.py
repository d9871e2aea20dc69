"""A run whose workdir lies in an object store: worked on here, sent while it goes on.

The store is the truth: what it holds is brought here at the start. A checkpoint that is
whole here is sent at once, behind the other files as they are then, and counts there
with its mark; so a process that is killed at any moment leaves a run that goes on.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import threading
import time

import jax

from jaxembed.files import place, remote_lock, url as url_lib
from jaxembed.files.alone import alone
from jaxembed.files.mirror import Mirror
from jaxembed.files.url import Objects

_LOOK, _SEND = 0.5, 30.0  # seconds: between looks for a checkpoint; between other sends
_REMEDY = 'choose another --workdir'


_OPEN: dict[pathlib.Path, 'RemoteRun'] = {}  # by the folder they are worked on in


def may_drop(folder: pathlib.Path) -> Callable[[int], bool]:
  """Asked before a checkpoint of the run in `folder` is removed: not while it is being
  copied, for half of one would be sent."""
  run = _OPEN.get(folder)
  return run.holds.may_drop if run else lambda step: True


class RemoteRun:
  """The run at a URL. `folder`: where it is worked on."""

  def __init__(self, mirror: Mirror, lock: remote_lock.Lock):
    self.folder, self._mirror, self._lock = mirror.folder, mirror, lock
    self.holds = mirror.holds
    self._error: OSError | None = None
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._send, daemon=True)
    self._thread.start()

  @property
  def failed(self) -> bool:
    """Whether the run must stop: nothing can be sent any more."""
    return self._error is not None or self._lock.lost

  def finish(self) -> None:
    """Sends what is left.

    Raises:
      OSError: it cannot be sent; where it lies is named.
    """
    self._end.set()
    self._thread.join()
    where = self._mirror.objects.url
    if self._lock.lost:
      raise OSError(
          f'{where} was taken over by another process, since this one gave no sign for '
          f'{remote_lock.STALE:.0f} s; what it did since then lies in {self.folder} '
          'and was not sent')
    try:
      self._mirror.push()
      if self._mirror.unsent():
        raise OSError(f'{where}: a checkpoint cannot be read here')
    except OSError as e:
      raise OSError(f'{e}. What was trained since the last checkpoint there lies in '
                    f'{self.folder}; the same command goes on from the last one in '
                    f'{where}') from (self._error or e)

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
        return


@contextlib.contextmanager
def opened(path: str | os.PathLike, log: Callable[[str], None]) -> Iterator[RemoteRun]:
  """The run at a URL, brought here and kept from others; sent at the end.

  Raises:
    ValueError: no place in a bucket; several processes.
    BlockingIOError: another process trains it; its host and number are named.
    OSError: the store cannot be reached, read or written.
  """
  url = url_lib.checked(url_lib.of(path) or str(path))
  if jax.process_count() > 1:
    raise ValueError(
        f'{url}: a run of several processes needs a --workdir that all of them mount '
        '(Filestore, a bucket over gcsfuse or Mountpoint); data and models may be URLs')
  objects, folder = Objects(url), place.staging(url)
  with contextlib.ExitStack() as held:
    held.enter_context(alone(folder.with_name('run.url.lock'), url, _REMEDY))
    lock = held.enter_context(remote_lock.held(objects, 'run.lock', url, _REMEDY, log))
    mirror = Mirror(objects, folder)
    mirror.pull(repair=True)
    log(f'remote     {url} is worked on in {folder}; a checkpoint counts once it is '
        'there')
    run = _OPEN[folder] = RemoteRun(mirror, lock)
    try:
      yield run
    finally:
      del _OPEN[folder]
      begun = time.perf_counter()
      run.finish()
      log(f'remote     all is in {url}; the last of it took '
          f'{time.perf_counter() - begun:.1f} s')
