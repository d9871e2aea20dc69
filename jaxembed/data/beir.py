"""Evaluation sets on disk: BEIR folders, scored sentence pairs, labelled texts."""

from collections.abc import Iterator
import dataclasses
import os
import pathlib

from jaxembed.data import files
from jaxembed.data.records import BadRow, labelled


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
  """Reads corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv of a BEIR folder.

  Each may be gzipped. The queries of a split may also stand in
  queries_SPLIT.jsonl. A document's text is its title, a space and its text, as
  BEIR and MTEB join them. Only queries with judgements of the split come back.

  Raises:
    FileNotFoundError: a file is missing.
    BadRow: a line is malformed, an id comes twice, or a judgement names a query
      or a document that is not there.
  """
  folder = pathlib.Path(folder)
  qrels = _qrels(folder, split)
  named = [p for p in (_find(folder, f'queries_{split}.jsonl'),
                       _find(folder, 'queries.jsonl')) if p]
  if not named:
    raise FileNotFoundError(f'{folder / "queries.jsonl"} (or .gz) does not exist')
  corpus = dict(_texts(_need(folder, 'corpus.jsonl')))
  queries: dict[str, str] = {}
  for path in named:
    queries |= dict(_texts(path))
  for query, gains in qrels.items():
    if query not in queries:
      raise BadRow(f'{folder}/qrels/{split}.tsv judges query {query!r}, which '
                   f'{", ".join(p.name for p in named)} does not have')
    if missing := next((d for d in gains if d not in corpus), None):
      raise BadRow(f'{folder}/qrels/{split}.tsv: document {missing!r} of query '
                   f'{query!r} is not in the corpus')
  return Retrieval(corpus, {q: queries[q] for q in qrels}, qrels)


def load_scored(path: str | os.PathLike) -> ScoredPairs:
  """Reads a TSV (plain or .gz) with columns score, sentence1 and sentence2.

  Raises:
    BadRow: a column is missing or a score is not a number.
  """
  rows = files.TsvRows(path)
  if missing := {'score', 'sentence1', 'sentence2'} - set(rows.columns):
    raise BadRow(f'{path}: no column {sorted(missing)[0]!r}; the first line names '
                 f'{", ".join(rows.columns)}')
  pairs = ScoredPairs([], [], [])
  for row, where in rows:
    try:
      pairs.scores.append(float(row['score']))
    except ValueError:
      raise BadRow(f"{where}: field 'score' is {row['score']!r}, not a "
                   'number') from None
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
  seen = set()
  for row, where in files.JsonLines(path):
    key, text = (row.get('_id'), row.get('text')) if isinstance(row, dict) else (0, 0)
    if not isinstance(key, str | int) or not isinstance(text, str):
      raise BadRow(f"{where}: an object with '_id' and 'text' is expected, not "
                   f'{row!r:.60}')
    key = str(key)
    if key in seen:
      raise BadRow(f'{where}: _id {key!r} comes a second time')
    seen.add(key)
    yield key, f"{row.get('title') or ''} {text}".strip()


def _qrels(folder: pathlib.Path, split: str) -> dict[str, dict[str, int]]:
  path = _need(folder / 'qrels', f'{split}.tsv')
  rows = files.TsvRows(path)
  if len(rows.columns) != 3:
    raise BadRow(f'{path}:1: three columns (query-id, corpus-id, score) are expected, '
                 f'not {len(rows.columns)}')
  qrels: dict[str, dict[str, int]] = {}
  for row, where in rows:
    query, document, gain = row.values()
    if not gain.lstrip('-').isdigit():
      raise BadRow(f"{where}: field 'score' is {gain!r}, not a whole number")
    qrels.setdefault(query, {})[document] = int(gain)
  return qrels


def _find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  return next((p for p in (folder / name, folder / f'{name}.gz') if p.is_file()), None)


def _need(folder: pathlib.Path, name: str) -> pathlib.Path:
  path = _find(folder, name)
  if path is None:
    raise FileNotFoundError(f'{folder / name} (or {name}.gz) does not exist')
  return path
