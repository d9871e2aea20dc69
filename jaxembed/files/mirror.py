"""Local copy of the objects under a URL, and the way back.

Object stores rename nothing, so a folder of many files counts once its mark is there:
`MARK`, written after all else and removed before all else. The checkpoints of a run are
such units; other files are whole one by one, those in JSON, which say what the others
are, last.
"""

from collections.abc import Callable, Iterable
import concurrent.futures
import contextlib
import json
import pathlib
import re
import shutil

from jaxembed.files import folder as folder_lib, whole_json
from jaxembed.files.url import Object, Objects

MARK = 'commit_success.txt'  # as Orbax calls it
_THREADS = 8
# What is on its way to its name, or holds for this machine alone.
_PASSING = re.compile(
    r'(.*/)?([^/]*\.orbax-checkpoint-tmp[^/]*(/.*)?|[^/]*\.(tmp|lock))')
_UNIT = re.compile(r'(checkpoints/\d+)/')
Wanted = Callable[[str], bool]


class Mirror:
  """A folder here and the objects under a URL, made equal either way."""

  def __init__(self, objects: Objects, folder: pathlib.Path):
    self.objects, self.folder = objects, folder
    self._index = folder.with_name(folder.name + '.index.json')
    self._known: dict[str, list] = {}  # name -> [tag, bytes, time of change here]
    self._marked: set[str] = set()
    with contextlib.suppress(OSError, ValueError):
      self._known = dict(json.loads(self._index.read_bytes()))

  def pull(self, wanted: Wanted = lambda name: True, *, repair: bool = False) -> None:
    """Makes the folder what the URL has of the `wanted` names; what is equal stays.

    repair: units without their mark, which a kill left, are removed there.
    """
    there = self.objects.names()
    self._marked = marked(there)
    whole = {name: found for name, found in there.items() if wanted(name)
             and not _PASSING.fullmatch(name) and not name.endswith(f'/{MARK}')
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

    A file that changes or goes meanwhile is for the next call.
    """
    here = self._here()
    single = [n for n in here if unit_of(n) is None and not self._same(n)]
    # A name that others read after a file is there after that file.
    plain = [n for n in single if not n.endswith('.json')]
    self._each(self._send, plain)
    for name in sorted(set(single) - set(plain), key=lambda n: (-n.count('/'), n)):
      self._send(name)
    for unit in sorted({u for n in here if (u := unit_of(n))} - self._marked):
      files = [n for n in here if unit_of(n) == unit]
      if all(self._each(self._send, files)):
        sizes = {n[len(unit) + 1:]: self._known[n][1] for n in files}
        self.objects.write(f'{unit}/{MARK}', json.dumps({'files': sizes}).encode())
        self._marked.add(unit)
    self._remove_gone()
    whole_json.write(self._index, self._known)

  def unsent(self) -> bool:
    """Whether the folder has a unit that the URL has not."""
    return any(unit_of(f'checkpoints/{p.name}/') and
               f'checkpoints/{p.name}' not in self._marked
               for p in (self.folder / 'checkpoints').glob('*'))

  def _remove_gone(self) -> None:
    gone = [n for n in self._known if not (self.folder / n).exists()]
    for unit in {u for n in gone if (u := unit_of(n))} & self._marked:
      self.objects.remove(f'{unit}/{MARK}')
      self._marked.discard(unit)
    self._each(self.objects.remove, gone)
    for name in gone:
      self._known.pop(name)

  def _here(self) -> list[str]:
    found = (p.relative_to(self.folder).as_posix() for p in self.folder.rglob('*')
             if p.is_file())
    return sorted(n for n in found if not _PASSING.fullmatch(n))

  def _same(self, name: str) -> bool:
    known = self._known.get(name)
    try:
      return known is not None and known[1:] == _state(self.folder / name)
    except FileNotFoundError:
      return True

  def _fetch(self, name: str, found: Object) -> None:
    target = folder_lib.inside(self.folder, name)
    if target.is_file() and self._known.get(name) == [found.tag, *_state(target)]:
      return
    target.parent.mkdir(parents=True, exist_ok=True)
    self.objects.fetch(name, target, found.size)
    self._known[name] = [found.tag, *_state(target)]

  def _send(self, name: str) -> bool:
    """Whether the file was there to be sent, and stayed as it was."""
    path = self.folder / name
    try:
      before = _state(path)
      if self._same(name):
        return True
      sent = self.objects.write(name, path)
      if _state(path) != before:
        return False
    except FileNotFoundError:
      if path.exists():
        raise
      return False
    self._known[name] = [sent.tag, *before]
    return True

  def _each(self, do: Callable, names) -> list:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      return list(pool.map(do, names))

  def _drop_empty(self) -> None:
    """Removes what is left of units: folders without a file."""
    for path in sorted(self.folder.rglob('*'), reverse=True):
      name = f'{path.relative_to(self.folder).as_posix()}/'
      if path.is_dir() and unit_of(name) and not any(
          p.is_file() for p in path.rglob('*')):
        shutil.rmtree(path)


def unit_of(name: str) -> str | None:
  """The unit that a file belongs to."""
  found = _UNIT.match(name)
  return found[1] if found else None


def marked(names: Iterable[str]) -> set[str]:
  """The units among the names of objects that are whole."""
  return {unit for name in names
          if (unit := unit_of(name)) and name == f'{unit}/{MARK}'}


def _state(path: pathlib.Path) -> list[int]:
  found = path.stat()
  return [found.st_size, found.st_mtime_ns]
