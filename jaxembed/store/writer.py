"""Writer of a vector store: shards that survive kills, filled by any number of hosts.

The store lies in TARGET.partial until every shard is there; a TARGET that exists is
whole. Host i of n fills the shards i, i + n, i + 2n, ... and the one that finishes
last gives the folder its name. Shards are files of their own, so that n may change
between two calls.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import shutil
import socket
import time
from typing import Any

import numpy as np

from jaxembed.files import whole_file, whole_json
from jaxembed.files.alone import alone, refuse_held
from jaxembed.files.vector_file import VectorFile, refuse_other
from jaxembed.store import codes, names

SHARD_ROWS = 1 << 20
_LONGEST_ID = 1024  # bytes
_TURNS = 100  # a tenth of a second each
_ELSEWHERE = 'choose another target'


class Shard:
  """Rows [first, first + rows) of a store, on their way to the disk.

  Attributes:
    first: its first row in the store.
    rows: how many it has.
    done: how many of them are on the disk.
    note: what was told with the last of these.
  """

  def __init__(self, first: int, file: VectorFile, alone: bool = False):
    self.first, self._file, self._alone = first, file, alone

  @property
  def rows(self) -> int:
    """Rows that the shard will hold."""
    return self._file.rows

  @property
  def done(self) -> int:
    """Rows written so far."""
    return self._file.done

  @property
  def note(self) -> Any:
    """What the last `append` noted beside its rows."""
    return self._file.note

  def append(self, stored: np.ndarray, note: Any = None) -> None:
    """Puts rows, as codes.encode makes them, behind what is done.

    note: plain data that is given back to whoever continues.
    """
    self._file.append(stored, note)

  def finish(self, ids: Sequence[str] | None = None) -> None:
    """Gives the shard its name, beside the ids of its rows and its checksums; a file
    that is `alone` has neither.

    Raises:
      ValueError: rows are missing, or an id cannot be stored.
    """
    if self.done != self.rows:
      raise ValueError(f'{self._file.target}: {self.done} of {self.rows} rows were '
                       'given')
    target = self._file.target
    if self._alone:
      self._file.finish()
      return
    if ids is not None:
      with whole_file.opened(names.ids(target), 'wb') as file:
        np.save(file, _id_array(ids, self.rows))
    self._file.finish(names.sums(target))


class Writer:
  """A vector store in the making; `with` keeps other writers out.

  Attributes:
    target: its folder.
    dtype, rows: how rows are stored, and how many there will be.
  """

  def __init__(self, target: str | os.PathLike, work: dict[str, Any], rows: int,
               width: int, dtype: str = 'float32', *, shard_rows: int = SHARD_ROWS,
               host: tuple[int, int] = (0, 1), overwrite: bool = False):
    """Names the work; nothing is written yet.

    Args:
      work: plain data that says what is computed (model, input, settings); unfinished
        work of something else is not continued.
      rows, width: of the whole store.
      dtype: one of codes.DTYPES.
      shard_rows: rows of each shard but the last.
      host: (which, of how many) this writer is.
      overwrite: replace a finished store, and drop unfinished work of something else.

    Raises:
      FileExistsError: the target is finished already, or is no vector store.
      ValueError: an argument makes no sense.
    """
    codes.check(dtype)
    self.target = pathlib.Path(target)
    index, count = host
    if not 0 <= index < count:
      raise ValueError(f'host {index} of {count}: hosts are counted from 0')
    for name, value in (('rows', rows), ('width', width), ('shard_rows', shard_rows)):
      if value < 1:
        raise ValueError(f'{name} is {value}; a vector store has at least 1')
    check_free(self.target, overwrite)
    self._folder = self.target.with_name(self.target.name + '.partial')
    self._manifest = {
        'format': names.FORMAT, 'version': names.VERSION, 'rows': rows, 'width': width,
        'dtype': dtype, 'shard_rows': shard_rows, 'work': work}
    self.dtype, self.rows = dtype, rows
    self._host, self._overwrite = host, overwrite
    self._held = contextlib.ExitStack()

  def __enter__(self) -> 'Writer':
    """Begins, or finds what is done.

    Raises:
      BlockingIOError: another process writes this target.
      ValueError: it holds unfinished work of something else.
    """
    index, count = self._host
    what = f'target {self.target}'
    with contextlib.ExitStack() as held:
      held.enter_context(alone(self._lock(index, count), what, _ELSEWHERE))
      for other in sorted(self._folder.glob('writer-*.lock')):
        if not other.name.endswith(f'-of-{count}.lock'):
          refuse_held(other, what, _ELSEWHERE)
      with _in_turn(self._folder / 'begin.lock', what):
        self._begin()
      self._held = held.pop_all()
    return self

  def __exit__(self, *_) -> None:
    self._held.close()

  def shards(self) -> Iterator[Shard]:
    """The shards of this host that are not there yet, each open to be filled.

    Raises:
      OSError: no room on the disk; what is done is kept.
    """
    rows, size = self._manifest['rows'], self._manifest['shard_rows']
    kind, tail = codes.layout(self.dtype, self._manifest['width'])
    index, count = self._host
    for number in range(index, -(-rows // size), count):
      path = names.shard(self._folder, number)
      if path.exists():
        continue
      held = min(size, rows - number * size)
      file = VectorFile(path, self._manifest | {'shard': number}, (held, *tail), kind)
      file.open(self._overwrite)
      yield Shard(number * size, file)

  def finish(self) -> bool:
    """Gives the store its name if every shard is there; returns whether it has it."""
    rows, size = self._manifest['rows'], self._manifest['shard_rows']
    if not all(names.shard(self._folder, n).exists() for n in range(-(-rows // size))):
      return self.target.exists()
    if self._overwrite:
      shutil.rmtree(self.target, ignore_errors=True)
    for lock in self._folder.glob('*.lock'):
      lock.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another host came first
      self._folder.rename(self.target)
    return self.target.exists()

  def _lock(self, index: int, count: int) -> pathlib.Path:
    return self._folder / f'writer-{index}-of-{count}.lock'

  def _begin(self) -> None:
    file = self._folder / names.MANIFEST
    if file.exists():
      try:
        found = names.read_manifest(self._folder)
      except ValueError:
        if not self._overwrite:
          raise
        found = {}
      if found == self._manifest:
        return
      if not self._overwrite:
        flat = [m['work'] | {k: v for k, v in m.items() if k != 'work'}
                for m in (found, self._manifest)]
        refuse_other(f'{self._folder} holds vectors', *flat)
      for old in self._folder.glob('shard-*'):
        old.unlink()
    own = file.with_name(f'{socket.gethostname()}-{os.getpid()}.json')
    whole_json.write(own, self._manifest)
    own.replace(file)


class SingleFile:
  """The same for one .npy matrix of float32 or float16, without ids and manifest."""

  def __init__(self, target: str | os.PathLike, work: dict[str, Any], rows: int,
               width: int, dtype: str, *, overwrite: bool = False):
    self.target = pathlib.Path(target)
    kind, tail = codes.layout(dtype, width)
    self._file = VectorFile(self.target, work, (rows, *tail), kind)
    self.dtype, self.rows, self._overwrite = dtype, rows, overwrite
    self._held = contextlib.ExitStack()

  def __enter__(self) -> 'SingleFile':
    lock = self.target.with_name(self.target.name + '.lock')
    self._held.enter_context(alone(lock, f'target {self.target}', _ELSEWHERE))
    return self

  def __exit__(self, *_) -> None:
    self._held.close()

  def shards(self) -> Iterator[Shard]:
    """The one part, open to be filled."""
    self._file.open(self._overwrite)
    yield Shard(0, self._file, alone=True)

  def finish(self) -> bool:
    """Whether the file has its name."""
    return self.target.exists()


@contextlib.contextmanager
def _in_turn(lock: pathlib.Path, what: str) -> Iterator[None]:
  """Waits for other hosts that begin at the same moment."""
  with contextlib.ExitStack() as held:
    for attempt in range(_TURNS):
      try:
        held.enter_context(alone(lock, what, _ELSEWHERE))
        break
      except BlockingIOError:
        if attempt + 1 == _TURNS:
          raise
        time.sleep(0.1)
    yield


def check_free(target: pathlib.Path, overwrite: bool) -> None:
  """Raises FileExistsError if `target` is there and may not be replaced."""
  if not target.exists():
    return
  if not (target / names.MANIFEST).is_file():
    raise FileExistsError(f'{target} exists and is no vector store; choose another '
                          'target')
  names.read_manifest(target)  # never is something else removed
  if not overwrite:
    raise FileExistsError(f'{target} exists and is complete; open it with '
                          'jaxembed.store.open, or overwrite it')


def _id_array(ids: Sequence[str], rows: int) -> np.ndarray:
  """[rows] of UTF-8 bytes, as wide as the longest."""
  if len(ids) != rows:
    raise ValueError(f'{len(ids)} ids were given for {rows} rows')
  encoded = [i.encode() for i in ids]
  for i in encoded:
    if len(i) > _LONGEST_ID or b'\0' in i or not i:
      raise ValueError(f'the id {i[:40]!r} cannot be stored: it is empty, has '
                       f'more than {_LONGEST_ID} bytes or a NUL; choose another '
                       'field for ids')
  return np.array(encoded)
