"""Files of texts with ids: the corpus and the queries of a BEIR folder."""

from collections.abc import Sequence
import dataclasses
import pathlib

from jaxembed.data import files
from jaxembed.data.fields import BadRow

_TEXT_COLUMN = {name: column for column, names in {
    'id': ('_id', 'id', 'qid', 'pid', 'did', 'docid', 'doc_id', 'docno', 'query_id',
           'corpus_id', 'passage_id', 'document_id'),
    'title': ('title',),
    'text': ('text', 'query', 'passage', 'document', 'body', 'contents')}.items()
    for name in names}


@dataclasses.dataclass(frozen=True)
class Text:
  """A document or a query."""

  id: str
  title: str
  text: str
  where: str  # 'file:line'

  @property
  def full(self) -> str:
    """Title, a space and text, as BEIR and MTEB join them."""
    return f'{self.title} {self.text}'.strip()


class TextRows(Sequence):
  """Texts of a .jsonl or .tsv file, plain or packed, read when they are asked for.

  A row of TSV is (id, text) or (id, title, text), with or without a header line.

  Raises:
    BadRow: a line is malformed, or a first line may be a header or a row.
  """

  def __init__(self, path: pathlib.Path, cache_dir: str = ''):
    self._tabbed = '.tsv' in path.suffixes
    self._lines = files.Lines(path, cache_dir=cache_dir)
    self.digest = self._lines.digest
    self._order: tuple[str, ...] = ()
    self._first = 0
    if self._tabbed and len(self._lines):
      self._read_header()

  def __len__(self) -> int:
    return len(self._lines) - self._first

  def __getitem__(self, i: int) -> Text:
    if not 0 <= i < len(self):
      raise IndexError(i)
    line, where = self._lines[i + self._first]
    return self._cells(line, where) if self._tabbed else _object(line, where)

  def _cells(self, line: str, where: str) -> Text:
    cells = line.split('\t')
    if len(cells) != len(self._order):
      raise BadRow(f'{where}: {len(cells)} cells, but the first line has '
                   f'{len(self._order)} ({", ".join(self._order)})')
    row = dict(zip(self._order, cells))
    return Text(row['id'], row.get('title', ''), row['text'], where)

  def _read_header(self) -> None:
    line, where = self._lines[0]
    cells = line.split('\t')
    self._order, header = _text_columns(cells, where)
    self._first = int(header)
    if header or len(self._lines) < 2 or any(c.isdigit() for c in cells[0]):
      return
    second = self._lines[1][0].split('\t')[0]
    if second.isdigit():
      raise BadRow(f'{where}: {cells[0]!r} may name a column or be an id unlike the '
                   f'others ({second} ...); name the columns id, title and text, or '
                   'remove the line')


def _object(line: str, where: str) -> Text:
  row = files.parse_json(line, where)
  row = row if isinstance(row, dict) else {'text': row}
  key, text, title = row.get('_id', row.get('id')), row.get('text'), row.get('title')
  if not isinstance(key, str | int) or isinstance(key, bool) or (
      not isinstance(text, str) or not isinstance(title, str | None)):
    raise BadRow(f"{where}: an object with '_id', 'text' and maybe 'title' is "
                 f'expected, not {row!r:.60}')
  return Text(str(key), title or '', text, where)


def _text_columns(cells: list[str], where: str) -> tuple[tuple[str, ...], bool]:
  """(what each column is, whether this first line is a header).

  A header names an id and a text, both of them; half a header is refused, as it may
  be a row.
  """
  known = [_TEXT_COLUMN.get(cell.strip().lower().replace('-', '_'), '')
           for cell in cells]
  if known.count('id') == 1 and known.count('text') == 1 and '' not in known:
    return tuple(known), True
  order = {2: ('id', 'text'), 3: ('id', 'title', 'text')}.get(len(cells))
  if order is None:
    raise BadRow(f'{where}: two columns (id, text) or three (id, title, text) are '
                 f'expected, not {len(cells)}')
  if known[0] == 'id':
    raise BadRow(f'{where}: {cells} may be a header or a row; name the columns id, '
                 'title and text, or remove the line')
  return order, False
