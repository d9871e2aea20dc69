"""Unpacking of gzip and zstd files, once, into the cache on disk."""

from collections.abc import Iterator
import gzip
import pathlib
import zlib

from jaxembed.data import cache
from jaxembed.data.fields import BadFile, BadRow

_GZIP, _ZSTD = b'\x1f\x8b', b'\x28\xb5\x2f\xfd'
# Files are unpacked to at most so many times their size, or so many bytes.
_MOST_TIMES, _SMALL = 100, 1 << 28
_CHUNK = 1 << 22


def plain(path: pathlib.Path, cache_dir: str = '') -> pathlib.Path:
  """`path`, or what it holds if it is a gzip or zstd file, unpacked in the cache.

  The content says which it is, whatever the name.

  Raises:
    BadRow: it is damaged, cut off, or not what its name says.
    BadFile: there is no room to unpack it.
  """
  with path.open('rb') as file:
    head = file.read(4)
  named = {'.gz': 'gzip', '.zst': 'zstd'}.get(path.suffix)
  kind = ('gzip' if head.startswith(_GZIP) else 'zstd' if head.startswith(_ZSTD)
          else None)
  if kind is None and named is None:
    return path
  if not head or (kind is None and named == 'gzip' and _GZIP.startswith(head)):
    raise BadRow(f'{path}: not a whole {named} file (it is empty or cut off); copy it '
                 'again')
  if kind is None:
    raise BadRow(f'{path}: no {named} file, whatever its name says; rename it, or '
                 'copy it again')

  def make(folder: pathlib.Path) -> None:
    size, most = 0, max(_SMALL, _MOST_TIMES * path.stat().st_size)
    with (folder / 'content').open('wb') as target:
      for part in _parts(path, kind):
        size += len(part)
        if size > most:
          raise BadFile(f'{path}: unpacks to more than {_MOST_TIMES} times its size; '
                        'unpack it on disk if it is what it should be')
        target.write(part)

  return cache.folder(path, 'unpacked', make, cache_dir) / 'content'


def _parts(path: pathlib.Path, kind: str) -> Iterator[bytes]:
  try:
    with _opened(path, kind) as file:
      while part := file.read(_CHUNK):
        yield part
  except (EOFError, OSError, zlib.error) as error:
    raise BadRow(f'{path}: not a whole {kind} file ({error}); copy it again') from error


def _opened(path: pathlib.Path, kind: str):
  if kind == 'gzip':
    return gzip.open(path)
  import pyarrow as pa  # takes a tenth of a second
  return pa.CompressedInputStream(pa.OSFile(str(path)), 'zstd')
