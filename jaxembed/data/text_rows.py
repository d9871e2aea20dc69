"""Rows of a file of texts: a text per line, or JSON objects, maybe gzipped."""

from collections.abc import Iterator
import dataclasses
import gzip
import pathlib
import zlib

from jaxembed import texts
from jaxembed.data import fields, files
from jaxembed.files import place

_BOM = b'\xef\xbb\xbf'
_JSON = ('.jsonl', '.ndjson')
_IDS = ('_id', 'id')
# Files whose lines are no texts.
_OTHERS = ('.json', '.csv', '.tsv', '.parquet', '.arrow', '.npy', '.npz', '.zip',
           '.zst', '.bz2', '.xz', '.xlsx', '.pdf')


@dataclasses.dataclass(frozen=True)
class Text:
  """A row of a file of texts."""

  text: str
  id: str  # '' without one
  where: str  # 'file:line'


@place.remote(reads=('source',))
def rows(source: pathlib.Path, field: str, digest=None, id_field: str = '', *,
         titles: bool = False) -> Iterator[Text]:
  """Every row of a .txt or .jsonl file; its bytes go into `digest`.

  titles: a title beside the text of an object stands in front of it, as in BEIR.

  Raises:
    ValueError: a row without a text under `field`, or without an id under `id_field`
      where that is given; names file, line and field.
  """
  kind = _kind(source)
  if kind in _OTHERS:
    raise ValueError(f'{source}: {kind} files are not read; give a text per line '
                     '(.txt) or JSON objects per line (.jsonl)')
  for number, line in enumerate(_lines(source), 1):
    if digest is not None:
      digest.update(line)
    where = f'{source}:{number}'
    line = line.removeprefix(_BOM) if number == 1 else line
    try:
      text = line.decode('utf-8').rstrip('\r\n')
    except UnicodeDecodeError as error:
      raise ValueError(f'{where}: not UTF-8 ({error}); convert the file') from None
    if kind not in _JSON:
      yield Text(text, '', where)
    elif text.strip():
      yield _from_json(text, field, id_field, where, titles)


@place.remote(reads=('source',))
def id_field(source: pathlib.Path, asked: str | None) -> str:
  """The JSON field that holds ids; '' for none."""
  if asked is not None or _kind(source) not in _JSON:
    return asked or ''
  line = next((line for line in _lines(source) if line.strip()), b'{}')
  row = files.parse_json(line.removeprefix(_BOM).decode('utf-8', 'replace'),
                         f'{source}:1')
  return next((name for name in _IDS if isinstance(row, dict) and name in row), '')


def _kind(source: pathlib.Path) -> str:
  suffixes = [s.lower() for s in source.suffixes]
  return next((s for s in reversed(suffixes) if s != '.gz'), '')


def _from_json(line: str, field: str, id_field: str, where: str, titles: bool
               ) -> Text:
  row = files.parse_json(line, where)
  text = row.get(field) if isinstance(row, dict) else None
  if not isinstance(text, str):
    keys = sorted(row) if isinstance(row, dict) else type(row).__name__
    raise ValueError(f'{where}: field {field!r} holds no text; the row has {keys}')
  if titles and isinstance(row.get('title'), str):
    text = f'{row["title"]} {text}'.strip()
  texts.check_text(text, f'{where}: field {field!r}')
  if not id_field:
    return Text(text, '', where)
  own = fields.identifier(row.get(id_field), id_field, where)
  if not own:
    raise ValueError(f'{where}: field {id_field!r} holds no id; give every row one, or '
                     "id_field='' for none")
  return Text(text, own, where)


def _lines(source: pathlib.Path) -> Iterator[bytes]:
  with source.open('rb') as file:
    if source.suffix.lower() != '.gz' and file.peek(2)[:2] != b'\x1f\x8b':
      yield from file
      return
    try:
      with gzip.open(file) as unpacked:
        yield from unpacked
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise ValueError(f'{source}: not a whole gzip file ({error}); copy it '
                       'again') from None
