"""Evaluation sets on disk: BEIR folders, scored sentence pairs, labelled texts."""

from collections.abc import Iterator
import dataclasses
import math
import os
import pathlib

from jaxembed.data import files, qrels
from jaxembed.data.records import BadRow, labelled

_TEXT_COLUMN = {name: column for column, names in {
    'id': ('_id', 'id', 'qid', 'pid', 'did', 'docid', 'doc_id', 'docno', 'query_id',
           'corpus_id', 'passage_id', 'document_id'),
    'title': ('title',),
    'text': ('text', 'query', 'passage', 'document', 'body', 'contents')}.items()
    for name in names}


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """A retrieval task."""

  corpus: dict[str, str]  # text by document id; the title stands in front
  queries: dict[str, str]  # text by query id
  qrels: dict[str, dict[str, int]]  # gain by query id and document id


@dataclasses.dataclass(frozen=True)
class ScoredPairs:
  """A textual-similarity task: row i is (first[i], second[i], scores[i])."""

  first: list[str]
  second: list[str]
  scores: list[float]


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
  """One side of a classification task, or a clustering task."""

  texts: list[str]
  labels: list[str]


def load(folder: str | os.PathLike, split: str = 'test') -> Retrieval:
  """Reads the corpus, the queries and qrels/SPLIT of a BEIR folder.

  corpus.jsonl or corpus.tsv, queries.jsonl or queries.tsv, and qrels/SPLIT.tsv, .txt
  or .jsonl, each maybe gzipped. The queries of a split may also stand in
  queries_SPLIT.jsonl. A document's text is its title, a space and its text, as
  BEIR and MTEB join them. Only queries with judgements of the split come back. Files
  without a header line are read whole (data/qrels.py).

  Judgements of documents that the corpus lacks stay (official ArguAna has some):
  they count in the ideal ranking, as in BEIR and MTEB.

  Raises:
    FileNotFoundError: a file is missing.
    BadRow: a line is malformed, an id comes twice, a judgement names a query that
      is not there, or no judged document is.
  """
  folder = pathlib.Path(folder)
  judged = _need(folder / 'qrels', f'{split}.tsv', f'{split}.txt', f'{split}.jsonl')
  named = [p for p in (
      _find(folder, f'queries_{split}.jsonl', f'queries_{split}.tsv'),
      _find(folder, 'queries.jsonl', 'queries.tsv')) if p]
  if not named:
    raise FileNotFoundError(f'{folder / "queries.jsonl"} (or .tsv, .gz) does not exist')
  corpus = dict(_texts(_need(folder, 'corpus.jsonl', 'corpus.tsv')))
  queries: dict[str, str] = {}
  for path in named:
    queries |= dict(_texts(path))
  found = qrels.read(judged, queries, corpus)
  return Retrieval(corpus, {q: queries[q] for q in found}, found)


def load_scored(path: str | os.PathLike) -> ScoredPairs:
  """Reads a TSV (plain or .gz) with columns score, sentence1 and sentence2.

  Raises:
    BadRow: a column is missing or a score is not a number.
  """
  rows = files.TsvRows(path)
  if missing := {'score', 'sentence1', 'sentence2'} - set(rows.columns):
    raise BadRow(f'{path}:1: no column {sorted(missing)[0]!r}; the first line is '
                 f'{", ".join(rows.columns)!r:.80} and must name the columns score, '
                 'sentence1 and sentence2')
  pairs = ScoredPairs([], [], [])
  for row, where in rows:
    try:
      score = float(row['score'])
    except ValueError:
      score = math.nan
    if not math.isfinite(score):
      raise BadRow(f"{where}: field 'score' is {row['score']!r}, not a number")
    pairs.scores.append(score)
    pairs.first.append(row['sentence1'])
    pairs.second.append(row['sentence2'])
  return pairs


def load_labelled(folder: str | os.PathLike, split: str) -> LabelledTexts:
  """Reads SPLIT.jsonl (plain or .gz) of a folder: rows of text and label.

  Raises:
    FileNotFoundError: there is no such file.
    BadRow: a field is missing, empty or of another type.
  """
  found = LabelledTexts([], [])
  for row, where in files.JsonLines(_need(pathlib.Path(folder), f'{split}.jsonl')):
    example = labelled(row, where)
    found.texts.append(example.query)
    found.labels.append(example.positives[0].text)
  return found


def _texts(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """(id, title and text) of every row of a .jsonl or .tsv file."""
  seen = set()
  for key, title, text, where in (
      _tabbed(path) if '.tsv' in path.suffixes else _objects(path)):
    if key in seen:
      raise BadRow(f'{where}: _id {key!r} comes a second time')
    seen.add(key)
    yield key, f'{title} {text}'.strip()


def _objects(path: pathlib.Path) -> Iterator[tuple[str, str, str, str]]:
  for row, where in files.JsonLines(path):
    row = row if isinstance(row, dict) else {'text': row}
    key, text, title = row.get('_id', row.get('id')), row.get('text'), row.get('title')
    if not isinstance(key, str | int) or isinstance(key, bool) or (
        not isinstance(text, str) or not isinstance(title, str | None)):
      raise BadRow(f"{where}: an object with '_id', 'text' and maybe 'title' is "
                   f'expected, not {row!r:.60}')
    yield str(key), title or '', text, where


def _tabbed(path: pathlib.Path) -> Iterator[tuple[str, str, str, str]]:
  """Rows of (id, text) or (id, title, text), with or without a header line."""
  lines = files.Lines(path)
  order: tuple[str, ...] = ()
  for number, (line, where) in enumerate(lines):
    cells = line.removeprefix('\ufeff').split('\t')
    if not number:
      order, header = _text_columns(cells, where)
      named = not any(c.isdigit() for c in cells[0])
      first = cells[0]
      if header:
        continue
    elif number == 1 and named and cells[0].isdigit():
      raise BadRow(f'{path}:1: {first!r} may name a column or be an id unlike the '
                   f'others ({cells[0]} ...); name the columns id, title and text, or '
                   'remove the line')
    if len(cells) != len(order):
      raise BadRow(f'{where}: {len(cells)} cells, but the first line has {len(order)} '
                   f'({", ".join(order)})')
    row = dict(zip(order, cells))
    yield row['id'], row.get('title', ''), row['text'], where


def _text_columns(cells: list[str], where: str) -> tuple[tuple[str, ...], bool]:
  """(what each column is, whether this first line is a header).

  A header names an id and a text, both of them; half a header is refused, as it may
  be a row.
  """
  known = [_TEXT_COLUMN.get(cell.strip().lower().replace('-', '_')) for cell in cells]
  if known.count('id') == 1 and known.count('text') == 1 and None not in known:
    return tuple(known), True
  order = {2: ('id', 'text'), 3: ('id', 'title', 'text')}.get(len(cells))
  if order is None:
    raise BadRow(f'{where}: two columns (id, text) or three (id, title, text) are '
                 f'expected, not {len(cells)}')
  if known[0] == 'id':
    raise BadRow(f'{where}: {cells} may be a header or a row; name the columns id, '
                 'title and text, or remove the line')
  return order, False


def _find(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """The first of the files that is there, plain or gzipped."""
  return next((p for name in names for p in (folder / name, folder / f'{name}.gz')
               if p.is_file()), None)


def _need(folder: pathlib.Path, *names: str) -> pathlib.Path:
  path = _find(folder, *names)
  if path is None:
    raise FileNotFoundError(f'{folder / names[0]} (or '
                            f'{", ".join([f"{names[0]}.gz", *names[1:]])}) does not '
                            'exist')
  return path
