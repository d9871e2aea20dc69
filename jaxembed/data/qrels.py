"""Relevance judgements (qrels) on disk: BEIR's, MTEB's and TREC's files.

A file's columns are read from its content. With a header of known names they are what
it says; without one, three columns are (query, document, gain) and four are TREC's
(query, iteration, document, gain). Nothing is taken for a header that could be a
judgement.
"""

from collections.abc import Collection, Container, Iterator
import pathlib
import re
import warnings

from jaxembed.data import files
from jaxembed.data.records import BadRow

Qrels = dict[str, dict[str, int]]  # query id -> document id -> gain

# What files call a column, with '-' for '_' and spaces.
_NAMES = {
    'query': ('query-id', 'queryid', 'query', 'qid', 'topic', 'topic-id', 'q-id'),
    'iteration': ('iteration', 'iter', 'subtopic'),
    'document': ('corpus-id', 'corpusid', 'doc-id', 'docid', 'docno', 'document-id',
                 'document', 'doc', 'pid', 'passage-id', 'did', 'passage'),
    'gain': ('score', 'relevance', 'rel', 'gain', 'label', 'judgment', 'judgement',
             'relevancy', 'grade', 'relevance-score'),
}
_COLUMN = {name: column for column, names in _NAMES.items() for name in names}
_LAYOUTS = {3: ('query', 'document', 'gain'),
            4: ('query', 'iteration', 'document', 'gain')}
_WHOLE = re.compile(r'[+-]?[0-9]+(\.0*)?', re.ASCII)


def read(path: pathlib.Path, queries: Collection[str], corpus: Container[str],
         cache_dir: str = '') -> Qrels:
  """Reads a .tsv, .txt or .jsonl file (or .gz) of judgements.

  A judgement of a document that the corpus lacks stays: BEIR and MTEB count it in
  the ideal ranking. A pair judged twice has its last gain, which is told.

  Args:
    queries, corpus: the ids that are there.
    cache_dir: where a packed file is kept unpacked; see SourceConfig.

  Raises:
    BadRow: a line that is neither a header nor a judgement, a query that is not
      there, or no judged document at all in the corpus.
  """
  qrels: Qrels = {}
  changed, first = 0, ''
  for (query, document, gain), where in _judgements(
      path, queries, corpus, cache_dir):
    if query not in queries:
      raise BadRow(f'{where}: judges query {query!r}, which the queries do not have; '
                   'queries and qrels belong to two sets')
    judged = qrels.setdefault(query, {})
    if judged.get(document, gain) != gain:
      changed, first = changed + 1, first or where
    judged[document] = gain
  if qrels and not any(d in corpus for judged in qrels.values() for d in judged):
    query, judged = next(iter(qrels.items()))
    raise BadRow(f'{path}: none of the judged documents is in the corpus (query '
                 f'{query!r} judges {next(iter(judged))!r}); corpus and qrels belong '
                 'to two sets, or the columns stand in another order')
  if changed:
    warnings.warn(f'{path}: {changed} pairs are judged twice with different gains, '
                  f'first at {first}; the last one counts', stacklevel=3)
  return qrels


def _judgements(path, queries, corpus, cache_dir: str
                ) -> Iterator[tuple[tuple[str, str, int], str]]:
  """((query, document, gain), 'file:line') of every line but the header."""
  if '.jsonl' in path.suffixes:
    yield from _objects(files.JsonLines(path, cache_dir))
    return
  lines = files.Lines(path, cache_dir=cache_dir)
  if not len(lines):
    return
  # A byte order mark is no part of the first id.
  rows = ((_cells(text.removeprefix('\ufeff')), where) for text, where in lines)
  cells, where = next(rows)
  layout, is_header = _layout(cells, where, queries, corpus)
  if not is_header:
    yield _judgement(cells, layout, where), where
  for cells, where in rows:
    if len(cells) != len(layout):
      raise BadRow(f'{where}: {len(cells)} cells, but the first line has '
                   f'{len(layout)} ({", ".join(layout)})')
    yield _judgement(cells, layout, where), where


def _layout(cells: list[str], where: str, queries, corpus
            ) -> tuple[tuple[str, ...], bool]:
  """(what each column is, whether this first line is a header)."""
  known = [_COLUMN.get(re.sub(r'[_ ]', '-', cell.strip().lower())) for cell in cells]
  columns = [name for name in known if name]
  once = len(set(columns)) == len(columns)
  if once and {'query', 'document', 'gain'} <= set(columns):
    return tuple(name or f'column {i + 1}' for i, name in enumerate(known)), True
  layout = _LAYOUTS.get(len(cells))
  if layout is None:
    raise BadRow(f'{where}: three columns (query-id, corpus-id, score) or the four of '
                 f'TREC are expected, not {len(cells)}')
  row = dict(zip(layout, cells))
  if _WHOLE.fullmatch(row['gain']) or row['query'] in queries or (
      row['document'] in corpus):
    return layout, False  # of a judgement without a number, _judgement complains
  if columns:
    return layout, True
  raise BadRow(f'{where}: {cells} is neither a judgement nor a header; name the '
               'columns query-id, corpus-id and score, or remove the line')


def _cells(text: str) -> list[str]:
  return text.split('\t') if '\t' in text else text.split()


def _judgement(cells, layout, where: str) -> tuple[str, str, int]:
  row = dict(zip(layout, cells))
  return row['query'], row['document'], _gain(row['gain'], where)


def _objects(rows) -> Iterator[tuple[tuple[str, str, int], str]]:
  for row, where in rows:
    if not isinstance(row, dict):
      raise BadRow(f"{where}: an object with 'query-id', 'corpus-id' and 'score' is "
                   f'expected, not {row!r:.60}')
    found = {_COLUMN.get(name.lower().replace('_', '-')): value
             for name, value in row.items()}
    for column, name in (('query', 'query-id'), ('document', 'corpus-id'),
                         ('gain', 'score')):
      value = found.get(column)
      if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise BadRow(f'{where}: field {name!r} is {value!r:.60}, not an id or number')
    yield (str(found['query']), str(found['document']),
           _gain(str(found['gain']), where)), where


def _gain(text: str, where: str) -> int:
  if not _WHOLE.fullmatch(text.strip()):
    raise BadRow(f"{where}: field 'score' is {text!r}, not a whole number")
  return int(text.strip().partition('.')[0])
