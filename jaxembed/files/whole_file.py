"""Files that are written whole or not at all, and what is there already refused."""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import IO, Any, Literal

from jaxembed.files import url

_NOT_THERE = 'write it to a local folder, and copy it there'


@contextlib.contextmanager
def opened(target: pathlib.Path, mode: Literal['w', 'wb'] = 'w') -> Iterator[IO[Any]]:
  """A file to write, text in UTF-8, that takes the place of `target` at the end.

  After an error `target` is as it was, and what was written lies in TARGET.tmp.
  """
  url.local(target, _NOT_THERE)
  part = target.with_name(target.name + '.tmp')
  with part.open(mode, encoding='utf-8' if mode == 'w' else None) as file:
    yield file
  part.replace(target)


def refuse_existing(target: pathlib.Path, overwrite: bool,
                    remedy: str = 'overwrite it, or give another file') -> None:
  """Raises FileExistsError if `target` is there and may not be replaced, which no
  folder may be."""
  if target.exists() and (target.is_dir() or not overwrite):
    raise FileExistsError(f'{target} exists; {remedy}')
