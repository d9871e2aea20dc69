"""Local copy of the objects under a URL, and the way back.

Object stores rename nothing, so a folder of many files counts once its mark is there:
`MARK`, written after all else and removed before all else. The checkpoints of a run are
such units; other files are whole one by one, those in JSON, which say what the others
are, last.

Where several processes train, each sends its share of a checkpoint from its own disk,
and process 0 the rest, and the mark once all shares are there.
"""

from collections.abc import Callable, Iterable
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import threading

from jaxembed.files import folder as folder_lib, whole_json
from jaxembed.files.url import Object, Objects

MARK = 'commit_success.txt'  # as Orbax calls it
_THREADS = 8
# What is on its way to its name, or holds for this machine alone.
_PASSING = re.compile(
    r'(.*/)?([^/]*\.orbax-checkpoint-tmp[^/]*(/.*)?|[^/]*\.(tmp|lock))')
_UNIT = re.compile(r'(checkpoints/\d+)/')
_SHARE = re.compile(r'(?:.*/)?(?:ocdbt\.)?process_(\d+)(?:/.*)?')  # as Orbax calls it
_SENT = 'share_{}.txt'  # in a unit: the share of that process is there
Wanted = Callable[[str], bool]


class Holds:
  """Steps whose checkpoint is being copied, or was given up: never both."""

  def __init__(self):
    self._lock, self._held = threading.Lock(), set()
    self._dropped: set[int] = set()

  def take(self, step: int) -> bool:
    """Whether a checkpoint may be copied, until `free`."""
    with self._lock:
      if step not in self._dropped:
        self._held.add(step)
      return step in self._held

  def free(self, step: int) -> None:
    """It was copied."""
    with self._lock:
      self._held.discard(step)

  def may_drop(self, step: int) -> bool:
    """Whether a checkpoint may be removed."""
    with self._lock:
      if step not in self._held:
        self._dropped.add(step)
      return step in self._dropped


class Mirror:
  """A folder here and the objects under a URL, made equal either way."""

  def __init__(self, objects: Objects, folder: pathlib.Path, process: int = 0,
               processes: int = 1):
    """process: which of several that send, each from a folder of its own."""
    self.objects, self.folder, self.holds = objects, folder, Holds()
    self._process, self._others = process, range(1, processes)
    self._index = folder.with_name(folder.name + '.index.json')
    self._known: dict[str, list] = {}  # name -> [tag, bytes, time of change here]
    self._marked: set[str] = set()  # units that are there, or whose share of ours is
    self._begun: set[str] = set()  # units of which only files are there yet
    with contextlib.suppress(OSError, ValueError):
      self._known = dict(json.loads(self._index.read_bytes()))

  def pull(self, wanted: Wanted = lambda name: True, *,
           there: dict[str, Object] | None = None, repair: bool = False) -> None:
    """Makes the folder what the URL has of the `wanted` names; what is equal stays.

    there: the names at the URL, where the caller has listed them.
    repair: units without their mark, which a kill left, are removed there.
    """
    there = self.objects.names() if there is None else there
    self._marked = marked(there)
    whole = {name: found for name, found in there.items() if wanted(name)
             and not _PASSING.fullmatch(name) and not _is_mark(name)
             and unit_of(name) in {None, *self._marked}}
    if repair:
      left = [n for n in there if unit_of(n) not in {None, *self._marked}]
      self._each(self.objects.remove, left)
    self.folder.mkdir(parents=True, exist_ok=True)
    for name in self._here():
      if wanted(name) and name not in whole:
        (self.folder / name).unlink()
    self._known = {n: k for n, k in self._known.items() if n in whole or not wanted(n)}
    self._each(lambda name: self._fetch(name, whole[name]), whole)
    self._drop_empty()
    whole_json.write(self._index, self._known)

  def pull_file(self, name: str) -> bool:
    """Brings one object; whether there is one."""
    found = self.objects.head(name)
    if found is not None:
      self._fetch(name, found)
      whole_json.write(self._index, self._known)
    return found is not None

  def push(self) -> None:
    """Makes the URL what the folder has.

    A file that changes or goes meanwhile is for the next call. Of processes but the
    first: its shares of units, and its own signs.
    """
    skipped: set[str] = set()
    while True:  # the other files as they are once the unit is whole, then the unit
      unit = max(self._unsent() - skipped, key=number, default='')
      self._send_single()
      if not unit:
        break
      if not self._send_unit(unit):
        skipped.add(unit)
    if not self._process:
      self._remove_gone()
    whole_json.write(self._index, self._known)

  def _send_single(self) -> None:
    """Sends the files that belong to no unit."""
    here = [n for n in self._here() if unit_of(n) is None]
    if self._process:
      here = [n for n in here if n == f'pulse-{self._process}.json']
    # A name that others read after a file is there after that file.
    plain = [n for n in here if not n.endswith('.json')]
    self._each(self._send, plain)
    for name in sorted(set(here) - set(plain), key=lambda n: (-n.count('/'), n)):
      self._send(name)

  def unsent(self) -> bool:
    """Whether the folder has a unit that the URL has not."""
    return bool(self._unsent())

  def _units(self) -> set[str]:
    """The units that are here."""
    return {unit for path in (self.folder / 'checkpoints').glob('*')
            if (unit := unit_of(f'checkpoints/{path.name}/'))}

  def _unsent(self) -> set[str]:
    return self._units() - self._marked

  def _send_unit(self, unit: str) -> bool:
    """Sends a unit, even if it is removed here meanwhile: by links to its files.

    False: it was being removed before these were made, or cannot be read.
    """
    links = self.folder.with_name(f'{self.folder.name}.sending')
    shutil.rmtree(links, ignore_errors=True)
    if not self.holds.take(number(unit)):
      return False
    try:
      shutil.copytree(self.folder / unit, links / unit, copy_function=_link)
    except (FileNotFoundError, shutil.Error):
      return False
    finally:
      self.holds.free(number(unit))
    names = [p.relative_to(links).as_posix() for p in links.rglob('*') if p.is_file()]
    names = [n for n in names if n != f'{unit}/{MARK}'  # Orbax has left one here
             and (not self._process or process_of(n) == self._process)]
    self._begun.add(unit)
    self._each(lambda name: self._send(name, links), names)
    shutil.rmtree(links)
    return self._mark(unit, names)

  def _mark(self, unit: str, names: list[str]) -> bool:
    """Says at the URL that a unit, or a share, is there; False: shares are missing."""
    if self._process:
      self.objects.write(f'{unit}/{_SENT.format(self._process)}', b'')
    elif any(self.objects.head(f'{unit}/{_SENT.format(i)}') is None
             for i in self._others):
      return False
    else:
      sizes = {name[len(unit) + 1:]: self._known[name][1] for name in names}
      self.objects.write(f'{unit}/{MARK}', json.dumps({'files': sizes}).encode())
    self._marked.add(unit)
    self._begun.discard(unit)
    return True

  def _remove_gone(self) -> None:
    """Removes there what is no longer here. What is still to be followed by a newer
    unit stays until that one is there."""
    gone = self._marked - self._units()
    newest = max(self._marked, key=number, default='')
    if newest in gone and any(number(u) > number(newest) for u in self._units()):
      gone.discard(newest)
    for unit in gone:
      self.objects.remove(f'{unit}/{MARK}')
      self._marked.discard(unit)
    gone |= self._begun - self._units()
    self._begun -= gone
    names = {n for n in self._known
             if unit_of(n) is None and not (self.folder / n).exists()}
    if gone:  # other processes may have sent files of it
      names |= {n for n in self.objects.names() if unit_of(n) in gone}
    self._each(self.objects.remove, names)
    self._known = {n: known for n, known in self._known.items()
                   if n not in names and unit_of(n) not in gone}

  def _here(self) -> list[str]:
    found = (pathlib.Path(parent, name).relative_to(self.folder).as_posix()
             for parent, _, names in os.walk(self.folder)  # which bears that some go
             for name in names)
    return sorted(n for n in found if not _PASSING.fullmatch(n))

  def _fetch(self, name: str, found: Object) -> None:
    target = folder_lib.inside(self.folder, name)
    if target.is_file() and self._known.get(name) == [found.tag, *_state(target)]:
      return
    target.parent.mkdir(parents=True, exist_ok=True)
    self.objects.fetch(name, target, found.size)
    self._known[name] = [found.tag, *_state(target)]

  def _send(self, name: str, folder: pathlib.Path | None = None) -> None:
    """Sends a file that is not there as it is here."""
    path = (folder or self.folder) / name
    try:
      before = _state(path)
      if self._known.get(name, [''])[1:] == before:
        return
      sent = self.objects.write(name, path)
      if _state(path) == before:
        self._known[name] = [sent.tag, *before]
    except FileNotFoundError:
      if path.exists():
        raise

  def _each(self, do: Callable, names: Iterable[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      list(pool.map(do, names))  # raises what one of them raised

  def _drop_empty(self) -> None:
    """Removes what is left of units: folders without a file."""
    for path in sorted(self.folder.rglob('*'), reverse=True):
      name = f'{path.relative_to(self.folder).as_posix()}/'
      if path.is_dir() and unit_of(name) and not any(
          p.is_file() for p in path.rglob('*')):
        shutil.rmtree(path)


def _link(source: str, target: str) -> None:
  try:
    os.link(source, target)
  except FileNotFoundError:
    raise
  except OSError:  # a file system without links
    shutil.copy2(source, target)


def number(unit: str) -> int:
  """The step that a unit is the checkpoint of."""
  return int(unit.rpartition('/')[2])


def unit_of(name: str) -> str | None:
  """The unit that a file belongs to."""
  found = _UNIT.match(name)
  return found[1] if found else None


def process_of(name: str) -> int | None:
  """The process whose share of a unit a file belongs to; None: it is of all."""
  found = _SHARE.fullmatch(name)
  return int(found[1]) if found else None


def _is_mark(name: str) -> bool:
  return unit_of(name) is not None and (
      name.endswith(f'/{MARK}') or re.fullmatch(
          r'.*/' + _SENT.format(r'\d+'), name) is not None)


def marked(names: Iterable[str]) -> set[str]:
  """The units among the names of objects that are whole."""
  return {unit for name in names
          if (unit := unit_of(name)) and name == f'{unit}/{MARK}'}


def _state(path: pathlib.Path) -> list[int]:
  found = path.stat()
  return [found.st_size, found.st_mtime_ns]
