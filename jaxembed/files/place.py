"""Places that a caller names, be they paths or URLs: brought here, and sent back.

What is read from a URL is copied to `HOME` first, once for each state of it; what is
written goes to a folder there, and to the URL once it is whole. So every function below
works on files, and only the doors that callers use know of URLs.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import fnmatch
import functools
import hashlib
import inspect
import os
import pathlib
import re
import shutil
from typing import Any, TypeVar

from jaxembed.files import remote_lock, url as url_lib
from jaxembed.files.alone import alone
from jaxembed.files.mirror import Mirror
from jaxembed.files.url import Objects

HOME = '~/.cache/jaxembed/remote'  # launchers put $XDG_CACHE_HOME in its place
_F = TypeVar('_F', bound=Callable[..., Any])
_ELSEWHERE = 'choose another target'


def staging(url: str, what: str = '') -> pathlib.Path:
  """Where the copy of a URL lies on this machine; it has the URL's own name.

  what: which part of it, where that is not all.
  """
  key = hashlib.sha256(f'{url} {what}'.encode()).hexdigest()[:16]
  name = url.rpartition('/')[2]
  return pathlib.Path(HOME).expanduser().absolute() / f'{name[:60]}-{key}' / name


def is_staged(path: str | os.PathLike) -> bool:
  """Whether a path lies in the copy of a URL, which this process has for itself."""
  return pathlib.Path(path).absolute().is_relative_to(
      pathlib.Path(HOME).expanduser().absolute())


def fetched(path: str | os.PathLike, only: Sequence[str] = ()) -> pathlib.Path:
  """`path` itself or, of a URL, its copy on this machine, made equal to it.

  Args:
    path: a file or folder; of a URL also a glob in the last part of its name.
    only: of a folder, the patterns of names that are wanted; (): all.

  Raises:
    FileNotFoundError: nothing is there. ValueError: a URL of another scheme.
    OSError: it cannot be reached.
  """
  url = url_lib.of(path)
  if url is None:
    return pathlib.Path(path)
  if re.search(r'[*?\[]', url):
    parent, _, pattern = url.rpartition('/')
    return fetched(parent, [pattern]) / pattern
  target = staging(url)
  target.parent.mkdir(parents=True, exist_ok=True)
  with alone(target.with_name(target.name + '.fetch.lock'), str(target),
             'read it later', wait=True):
    if not _bring(url, target, only):
      raise FileNotFoundError(f'{url}: there is nothing')
  return target


def _bring(url: str, target: pathlib.Path, only: Sequence[str] = ()) -> bool:
  """Makes `target` what the URL has; whether it has anything."""
  parent, _, name = url_lib.checked(url).rpartition('/')
  if parent.count('/') > 1 and Mirror(Objects(parent), target.parent).pull_file(name):
    return True
  objects = Objects(url)
  there = objects.names()
  if not there:
    return False
  Mirror(objects, target).pull(
      lambda name: not only or any(fnmatch.fnmatch(name, p) for p in only), there=there)
  return True


@contextlib.contextmanager
def published(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A path to write: `path` itself or, of a URL, a copy that is sent back at the end.

  What the URL has is brought here first. After an error nothing is sent, and the same
  call on this machine goes on with what was done.

  Raises:
    BlockingIOError: another process writes there; its host and number are named.
  """
  url = url_lib.of(path)
  if url is None:
    yield pathlib.Path(path)
    return
  target = staging(url)
  name = url_lib.checked(url).rpartition('/')[2]
  target.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as held:
    held.enter_context(alone(target.with_name(name + '.url.lock'), url, _ELSEWHERE))
    held.enter_context(remote_lock.held(
        Objects(f'{url}.lock'), '', url, _ELSEWHERE))
    unsent = target.with_name(name + '.unsent')
    if unsent.exists():  # the call before this one did all but that
      _send(url, target, unsent)
    if not _bring(url, target):
      _remove(target)
    yield target
    _send(url, target, unsent)


def _send(url: str, target: pathlib.Path, unsent: pathlib.Path) -> None:
  """Makes the URL what `target` is; `unsent` is there until it is."""
  unsent.touch()
  if target.is_dir():
    Mirror(Objects(url), target).push()
  elif target.exists():
    Objects(url).write('', target)
  unsent.unlink()


def _remove(target: pathlib.Path) -> None:
  if target.is_dir():
    shutil.rmtree(target)
    target.with_name(target.name + '.index.json').unlink(missing_ok=True)
  else:
    target.unlink(missing_ok=True)


def remote(*, reads: Sequence[str] = (), writes: Sequence[str] = ()
           ) -> Callable[[_F], _F]:
  """Decorator: the arguments of these names may be URLs (`fetched`, `published`)."""
  def around(function: _F) -> _F:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def at_places(*args, **kwargs):
      try:
        bound = signature.bind(*args, **kwargs)
      except TypeError:
        return function(*args, **kwargs)  # which says what is wrong
      given = bound.arguments
      with contextlib.ExitStack() as written:
        for name in reads:
          if url_lib.of(given.get(name)):
            given[name] = fetched(given[name])
        for name in writes:
          if url_lib.of(given.get(name)):
            given[name] = written.enter_context(published(given[name]))
        return function(*bound.args, **bound.kwargs)

    return at_places  # type: ignore[return-value]
  return around
