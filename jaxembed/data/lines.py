"""Lines and CSV records of text files, read when they are asked for."""

from collections.abc import Sequence
import hashlib
import os
import pathlib

from jaxembed.data import cache, line_index, unpack
from jaxembed.data.fields import BadFile, BadRow
from jaxembed.data.line_index import Cells

_OTHERS = {b'PK\x03\x04': 'zip', b'BZh': 'bzip2', b'\xfd7zX': 'xz'}
_TABLES = {b'PAR1': 'parquet', b'ARRO': 'arrow'}


class Lines(Sequence):
  """The lines of a UTF-8 file that are not blank, as (text, 'file:line').

  Lines end in LF or CR LF. A byte order mark in front of the file is left out. With
  quoted `cells` a row is a record of CSV, and may go over several lines. A gzip or zstd
  file is unpacked once, into the cache on disk.

  Raises:
    BadRow: not a whole file of its kind, not UTF-8, or a line that is too long.
    BadFile: the file changed after it was opened, or is gone.
  """

  def __init__(self, path: str | os.PathLike, cells: Cells | None = None,
               cache_dir: str = ''):
    self.path = pathlib.Path(path)
    self._name = str(self.path)
    self._was = cache.state(self.path)
    self._plain = unpack.plain(self.path, cache_dir)
    self._packed = self._plain != self.path
    self._plain_was = cache.state(self._plain)
    with self._plain.open('rb') as file:
      _refuse_other_formats(file.read(4), self.path)
    if self._packed:  # what is made of it goes when it goes
      cache_dir = str(self._plain.parent)
    try:
      self._index = line_index.index(self._plain, cells, cache_dir)
    except BadFile:
      raise
    except BadRow as error:  # of what was unpacked, named after what it came from
      said = str(error).replace(str(self._plain), str(self.path), 1)
      raise BadRow(said) from error
    quoted = cells is not None and cells.quoted
    if len(self) == 1 and not quoted and b'\r' in self._bytes(0).rstrip(b'\r\n'):
      raise BadRow(f'{self.path}: lines end in CR alone; convert them to LF, for '
                   "example with tr '\\r' '\\n'")

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, i: int) -> tuple[str, str]:
    numbers = self._index.numbers
    where = f'{self._name}:{i + 1 if numbers is None else numbers[i]}'
    if self._index.sizes[i] > line_index.LONGEST:
      raise BadRow(f'{where}: a line of more than {line_index.LONGEST} bytes, the most '
                   'that is read. Remove it, or split its texts')
    try:
      text = self._bytes(i).decode('utf-8').rstrip('\r')
    except UnicodeDecodeError as error:
      raise BadRow(f'{where}: not UTF-8 ({error}); convert the file') from error
    if text.startswith('\ufeff'):
      raise BadRow(f'{where}: a byte order mark stands inside the file, as where files '
                   'were joined; remove it')
    return text, where

  def digest(self) -> bytes:
    """SHA-256 of the file, at the speed of the disk, or from its index."""
    cache.check(self.path, self._was)
    if self._index.sha256 and not self._packed:
      return bytes.fromhex(self._index.sha256)
    with self.path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').digest()

  def _bytes(self, i: int) -> bytes:
    """Row i as it stands there.

    The file is read and not mapped: a page that is gone from a mapped file ends the
    process. It is opened each time: a source may have more files than can be open.
    """
    if self._packed:
      cache.check(self.path, self._was)
    try:
      file = os.open(self._plain, os.O_RDONLY)
    except FileNotFoundError:
      cache.check(self.path, self._was)
      raise BadFile(f'{self._plain}: gone, where {self.path} was unpacked; the same '
                    'command unpacks it again') from None
    try:
      found = os.pread(file, self._index.sizes.item(i), self._index.starts.item(i))
      if cache.of(os.fstat(file)) != self._plain_was:
        cache.check(self.path, (-1, -1))
    finally:
      os.close(file)
    return found


def _refuse_other_formats(head: bytes, path: pathlib.Path) -> None:
  for magic, kind in _TABLES.items():
    if head.startswith(magic):
      raise BadRow(f'{path}: a {kind.capitalize()} file; set kind={kind!r}')
  for magic, name in _OTHERS.items():
    if head.startswith(magic):
      raise BadRow(f'{path}: a {name} file, which is not read; unpack or convert it')
  if head[:2] in (b'\xff\xfe', b'\xfe\xff') or b'\0' in head:
    raise BadRow(f'{path}: UTF-16 or UTF-32, or no text at all; convert it to UTF-8, '
                 'for example with iconv -f UTF-16 -t UTF-8')
