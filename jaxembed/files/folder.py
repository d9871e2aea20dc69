"""Safe access to the files of an untrusted model folder.

A folder may name files (modules.json, an index of shards) and hold links; neither
may lead out of it. What travels from one folder to another is a closed list.
"""

import io
import os
import pathlib
import re
import stat
from typing import Any

_LONGEST_NAME = 1000
_HUB_SNAPSHOT = re.compile(r'(.*/models--[^/]+)/snapshots/[^/]+(/.*)?')


class BadCheckpoint(ValueError):
  """A model's file that cannot be used; the message says which one and why."""


def short(value: Any, length: int = 80) -> str:
  """`repr` of a stranger's value, cut so that a message stays a sentence."""
  if isinstance(value, str):  # before repr: it may have millions of characters
    value = value[:length + 1]
  elif isinstance(value, dict | list | tuple) and len(value) > length:
    return f'a {type(value).__name__} of {len(value)}'
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # an integer of thousands of digits
    return f'a value of type {type(value).__name__}'
  return text if len(text) <= length else text[:length - 3] + '...'


def first_line(e: Exception) -> str:
  """What another library's error says, without the lines that follow."""
  return str(e).strip().splitlines()[0] if str(e).strip() else 'no details'


def inside(folder: str | os.PathLike, name: str) -> pathlib.Path:
  """folder/name, which need not exist. '' and '.' are the folder itself.

  Raises:
    BadCheckpoint: it would lie outside the folder, by its name or over a link. The
      Hugging Face hub's cache, whose snapshots link to files beside them, is a
      folder with them.
  """
  folder = pathlib.Path(folder)
  if not isinstance(name, str) or len(name) > _LONGEST_NAME:
    raise BadCheckpoint(f'{folder} names {short(name)} where the name of a file in it '
                        'is wanted; refused')
  if '\0' in name or '\\' in name:
    raise BadCheckpoint(f'{short(name)} is no name of a file in {folder}; refused')
  parts = pathlib.PurePosixPath(name).parts
  path = folder.joinpath(*parts)
  if '..' in parts or name.startswith('/') or not _stays(folder, path):
    raise BadCheckpoint(f'{short(name)} lies outside {folder}; refused')
  return path


def _stays(folder: pathlib.Path, path: pathlib.Path) -> bool:
  """Whether `path`, links followed, is in `folder`, or in its hub cache's store."""
  home, real = os.path.realpath(folder), os.path.realpath(path)
  cache = _HUB_SNAPSHOT.fullmatch(home)
  return (pathlib.Path(real).is_relative_to(home)
          or (cache is not None and real.startswith(f'{cache[1]}/blobs/')))


def leads_out(file: pathlib.Path) -> bool:
  """Whether `file` is, over links, no file of its own folder (or hub cache)."""
  return not _stays(file.parent, file)


def read_bytes(file: str | os.PathLike, limit: int) -> bytes:
  """All of a regular file that its own folder holds.

  Raises:
    BadCheckpoint: no such file, a folder, device, pipe or link out of the folder, or
      more than `limit` bytes.
  """
  file = pathlib.Path(file)
  if leads_out(file):
    raise BadCheckpoint(f'{file} is a link out of its folder; refused: put the file '
                        'itself there')
  with open_regular(file) as f:
    data = f.read(limit + 1)
  if len(data) > limit:
    raise BadCheckpoint(f'{file} has more than the {limit} bytes that such a file may '
                        'have; refused')
  return data


def open_regular(file: str | os.PathLike, buffering: int = -1
                 ) -> io.BufferedReader | io.FileIO:
  """The file, opened for reading bytes.

  Raises:
    BadCheckpoint: it cannot be opened, or is a folder, a device or a pipe.
  """
  try:
    # A pipe without a writer would make a plain open wait for ever.
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except (OSError, ValueError) as e:
    raise BadCheckpoint(f'{file} cannot be read: '
                        f'{getattr(e, "strerror", None) or e}') from None
  if not stat.S_ISREG(os.fstat(handle).st_mode):
    os.close(handle)
    raise BadCheckpoint(f'{file} is no regular file; refused')
  found: Any = os.fdopen(handle, 'rb', buffering)
  return found
