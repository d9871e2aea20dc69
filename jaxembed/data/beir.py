"""Evaluation sets on disk: BEIR folders, scored sentence pairs, labelled texts."""

import dataclasses
import math
import os
import pathlib

from jaxembed.data import files, qrels
from jaxembed.data.beir_texts import TextRows
from jaxembed.data.records import BadRow, labelled
from jaxembed.files import place


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


@dataclasses.dataclass(frozen=True)
class Paths:
  """The files of a BEIR folder that a split is read from."""

  corpus: pathlib.Path
  queries: tuple[pathlib.Path, ...]  # later ones go before earlier ones
  qrels: pathlib.Path


@place.remote(reads=('folder',))
def is_folder(folder: str | os.PathLike) -> bool:
  """Whether a folder has judgements, as BEIR's have."""
  return (pathlib.Path(folder) / 'qrels').is_dir()


@place.remote(reads=('folder',))
def paths(folder: str | os.PathLike, split: str) -> Paths:
  """Where a split's files are.

  Raises:
    FileNotFoundError: one is missing.
  """
  folder = pathlib.Path(folder).expanduser()
  judged = _need(folder / 'qrels', f'{split}.tsv', f'{split}.txt', f'{split}.jsonl')
  queries = tuple(p for p in (
      _find(folder, f'queries_{split}.jsonl', f'queries_{split}.tsv'),
      _find(folder, 'queries.jsonl', 'queries.tsv')) if p)
  if not queries:
    raise FileNotFoundError(f'{folder / "queries.jsonl"} (or .tsv, .gz) does not exist')
  return Paths(_need(folder, 'corpus.jsonl', 'corpus.tsv'), queries, judged)


@place.remote(reads=('folder',))
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
  there = paths(folder, split)
  corpus = _texts(there.corpus)
  queries: dict[str, str] = {}
  for path in there.queries:
    queries |= _texts(path)
  found = qrels.read(there.qrels, queries, corpus)
  return Retrieval(corpus, {q: queries[q] for q in found}, found)


@place.remote(reads=('path',))
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


@place.remote(reads=('folder',))
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


def _texts(path: pathlib.Path) -> dict[str, str]:
  """Title and text by id, of a .jsonl or .tsv file."""
  found: dict[str, str] = {}
  for text in TextRows(path):
    if text.id in found:
      raise BadRow(f'{text.where}: _id {text.id!r} comes a second time')
    found[text.id] = text.full
  return found


def _find(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """The first of the files that is there, plain or packed."""
  return next((p for name in names for end in ('', '.gz', '.zst')
               if (p := folder / f'{name}{end}').is_file()), None)


def _need(folder: pathlib.Path, *names: str) -> pathlib.Path:
  path = _find(folder, *names)
  if path is None:
    raise FileNotFoundError(f'{folder / names[0]} (or '
                            f'{", ".join([f"{names[0]}.gz", *names[1:]])}) does not '
                            'exist')
  return path
