"""Cache on disk of what is derived from a file once: unpacked, indexed, converted."""

from collections.abc import Callable
import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil

import numpy as np

from jaxembed.data.fields import BadFile

# A file's size and time of change, which tell whether it is as it was.
State = tuple[int, int]
HOME = '~/.cache/jaxembed/data'


def state(path: str | os.PathLike) -> State:
  """The state of a file now.

  Raises:
    BadFile: it is not there.
  """
  try:
    return of(os.stat(path))
  except FileNotFoundError:
    raise BadFile(f'{path}: there is no such file; give its path, or put it back if it '
                  'was there before, and the same command goes on') from None


def of(found: os.stat_result) -> State:
  """The state of a file: its size and when it was last written."""
  return found.st_size, found.st_mtime_ns


def check(path: str | os.PathLike, was: State) -> None:
  """Raises BadFile if a file is not in the state that it was in."""
  if state(path) != was:
    raise BadFile(f'{path}: the file changed after it was opened; give the same '
                  'command again once it is as it should be')


def folder(path: pathlib.Path, what: str, make: Callable[[pathlib.Path], None],
           home: str = '') -> pathlib.Path:
  """The folder with what `make(folder)` writes for a file, made once per state of it.

  Several processes make it once, one that is killed leaves nothing that counts, and
  what was made for an earlier state of the file is removed.

  Args:
    what: a name for what is made, and its version.
    home: where all is kept; '': ~/.cache/jaxembed/data.

  Raises:
    BadFile: there is no room for it, or the file changes meanwhile. And what `make`
      raises.
  """
  path = pathlib.Path(os.path.abspath(path))
  key = hashlib.sha256(f'{path}\n{what}'.encode('utf-8', 'surrogateescape'))
  base = pathlib.Path(os.path.expanduser(home or HOME)) / (
      f'{path.name[:60]}-{what}-{key.hexdigest()[:16]}')
  now = state(path)
  found = base / '{}-{}'.format(*now)
  if found.is_dir():
    return found
  try:
    base.mkdir(parents=True, exist_ok=True)
    with _alone(base):
      if not found.is_dir():
        for left in base.iterdir():
          if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        partial = base / 'partial'
        partial.mkdir()
        make(partial)
        check(path, now)
        partial.rename(found)
  except OSError as error:
    raise BadFile(f'{path}: what is read from it cannot be kept in {base} '
                  f'({error.strerror or error}); make room there, or set cache_dir of '
                  'the source to a folder that has it') from error
  return found


def mapped(file: pathlib.Path) -> np.ndarray:
  """A .npy file, mapped into memory; as a plain array, whose items are read faster."""
  return np.asarray(np.load(file, 'r'))


@contextlib.contextmanager
def _alone(base: pathlib.Path):
  """Waits until no other process makes something there."""
  with (base / 'lock').open('w') as lock:
    with contextlib.suppress(OSError):  # some network drives know no locks
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield
