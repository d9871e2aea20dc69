"""A lock file that names its holder, so that one process writes a thing at a time."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import warnings

from jaxembed.files import url

# Seconds between two signs of a holder, and without one after which it has ended, on
# file systems that know no locks.
BEAT, STALE = 10.0, 60.0


class Held(BlockingIOError):
  """Another process holds a lock: `process` on `host`."""

  def __init__(self, host: str, process: int | str, what: str, remedy: str):
    super().__init__(f'{what} is being written by process {process} on host {host}; '
                     f'wait until it has ended, or {remedy}')
    self.host, self.process = host, process


@contextlib.contextmanager
def alone(lock: pathlib.Path, what: str, remedy: str, *, wait: bool = False
          ) -> Iterator[None]:
  """Holds `lock`, which is made, and removes it at the end.

  The end of the process, of any kind, leaves it too: what a killed process left
  behind is taken over.

  Args:
    what: is written, for the message.
    remedy: instead of waiting.
    wait: for the other process, instead of an error.

  Raises:
    BlockingIOError: another process holds it; its host and number are named.
  """
  url.local(lock, 'give a local folder, and copy it there')
  lock.parent.mkdir(parents=True, exist_ok=True)
  file, by_system = _taken(lock, what, remedy, wait)
  end = threading.Event()
  if not by_system:
    threading.Thread(target=_beat, args=(lock, end), daemon=True).start()
  try:
    yield
  finally:
    end.set()
    with contextlib.suppress(FileNotFoundError):
      lock.unlink()
    os.close(file)


def refuse_held(lock: pathlib.Path, what: str, remedy: str) -> None:
  """Raises BlockingIOError if a process holds `lock`, a lock of others."""
  try:
    file = os.open(lock, os.O_RDWR)
  except FileNotFoundError:
    return
  try:
    _lock(file, lock, what, remedy)
  finally:
    os.close(file)


def _taken(lock: pathlib.Path, what: str, remedy: str, wait: bool
           ) -> tuple[int, bool]:
  """The open file, once it is ours and still the one of that name; see `_lock`."""
  while True:
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      if wait:
        with contextlib.suppress(OSError):  # a file system without locks
          fcntl.flock(file, fcntl.LOCK_EX)
      by_system = _lock(file, lock, what, remedy)
      if _same(file, lock):  # a holder that ended meanwhile has removed it
        holder = {'host': socket.gethostname(), 'process': os.getpid()}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        return file, by_system
    except BaseException:
      os.close(file)
      raise
    os.close(file)


def _lock(file: int, lock: pathlib.Path, what: str, remedy: str) -> bool:
  """Whether the system holds the lock for us; False: our name in the file does."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  except BlockingIOError:
    holder, more = _holder(file), ''
  except OSError:  # a file system without locks: the name in the file must do
    holder = _holder(file)
    if not holder or gone(*holder) or _silent(lock, holder[0]):
      return False
    more = f', or remove {lock} if that process is gone'
  host, process = holder or ('unknown', 'unknown')
  raise Held(host, process, what, remedy + more)


def _holder(file: int) -> tuple[str, int] | None:
  """(host, process) that a lock file names."""
  try:
    found = json.loads(os.pread(file, 4096, 0))
    return str(found['host']), int(found['process'])
  except (ValueError, KeyError, TypeError):
    return None


def _beat(lock: pathlib.Path, end: threading.Event) -> None:
  """Touches a lock file now and then, for those who watch it from other hosts."""
  while not end.wait(BEAT):
    with contextlib.suppress(OSError):
      os.utime(lock)


def _silent(lock: pathlib.Path, host: str) -> bool:
  """Whether a holder on another host gives no sign for `STALE` seconds."""
  if host == socket.gethostname():
    return False
  warnings.warn(f'{lock} is held on host {host}; waiting {STALE:.0f} s to see whether '
                'it lives', stacklevel=2)
  first, end = _touched(lock), time.monotonic() + STALE
  while time.monotonic() < end:
    time.sleep(STALE / 60)
    if _touched(lock) != first:
      return False
  return True


def _touched(lock: pathlib.Path) -> int | None:
  try:
    return lock.stat().st_mtime_ns
  except FileNotFoundError:
    return None


def gone(host: str, process: int) -> bool:
  """Whether a process is known to have ended."""
  if host != socket.gethostname():
    return False
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    return False
  return False


def _same(file: int, lock: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file), os.stat(lock))
  except FileNotFoundError:
    return False
