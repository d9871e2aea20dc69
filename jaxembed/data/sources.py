"""Datasets that a SourceConfig names, opened as sequences of Examples."""

from collections.abc import Sequence

import numpy as np

from jaxembed.config import SourceConfig
from jaxembed.data import (
    bad_rows,
    bm25_rows,
    columns,
    installed_code,
    labelled,
    memory,
    prompts,
    readers,
    records,
)
from jaxembed.data.records import BadRow, Example


def load(cfg: SourceConfig, check_rows: int = 0, given: memory.Rows | None = None
         ) -> Sequence[Example]:
  """The rows of a source, parsed as they are asked for.

  Args:
    given: by name of a source of kind 'memory', its rows.
    check_rows: so many rows, spread evenly, are read now, so that a bad one shows
      before training does.

  Raises:
    BadRow: a checked row cannot be used, or there is none at all.
    FileNotFoundError: the path names nothing.
  """
  return examples(cfg, opened(cfg, given), check_rows)


def opened(cfg: SourceConfig, given: memory.Rows | None = None) -> Sequence | None:
  """The rows as they stand (see readers); None for what is made and stands nowhere."""
  return None if cfg.kind == 'installed_code' else readers.open_rows(cfg, given)


def examples(cfg: SourceConfig, stored: Sequence | None, check_rows: int = 0
             ) -> Sequence[Example]:
  """See `load`.  stored: from `opened`."""
  rows = _examples(cfg, stored)
  if not len(rows):
    raise BadRow(f'source {cfg.name!r} ({cfg.kind} {cfg.path!r}) has no rows'
                 + (f' with a score of {cfg.min_score} or more' if cfg.min_score
                    else ''))
  if check_rows:
    checked = plain(rows)
    for _, row in bad_rows.good(spread(len(checked), check_rows), checked.__getitem__,
                                cfg):
      prompts.check_instruction(cfg, row)
  # Rows with BM25 negatives are turned round already, for negatives of their own.
  return _BothWays(rows) if cfg.symmetric and cfg.rows != 'bm25' else rows


def plain(rows: Sequence[Example]) -> Sequence[Example]:
  """Opened rows as they were read, without the negatives found for them."""
  return (rows.examples if isinstance(rows, bm25_rows.Bm25Rows | _BothWays)
          else rows)


def spread(size: int, count: int) -> range:
  """At most `count` (not 0) places out of `size`, the first and then evenly."""
  return range(0, size, -(-size // count) or 1)


def draw(rows: Sequence[Example], i: int, negatives: int,
         rng: np.random.Generator) -> Example:
  """Row i; what a row does not name itself is drawn from `rng`."""
  if isinstance(rows, labelled.Labelled):
    return rows.draw(i, negatives, rng)
  return rows[i]


def _examples(cfg: SourceConfig, stored: Sequence | None) -> Sequence[Example]:
  if stored is None:
    return installed_code.read(cfg.split, cfg.limit)
  if cfg.rows in ('same_label', 'label_text'):
    return labelled.Labelled(stored, cfg)
  rows = _Parsed(stored, cfg)
  if cfg.rows == 'bm25':
    return bm25_rows.Bm25Rows(rows, cfg)
  return rows if not _scored(cfg) else _Kept(rows, cfg)


class _Parsed(Sequence):
  """Raw rows as Examples."""

  def __init__(self, rows: Sequence, cfg: SourceConfig):
    self._rows, self._cfg = rows, cfg
    self._names = () if cfg.header is False else tuple(cfg.columns)
    self._parallel = cfg.kind in ('tsv', 'csv') and not self._names
    self._scored = _scored(cfg)
    self._len = min(len(rows), cfg.limit) if cfg.limit else len(rows)

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < self._len:
      raise IndexError(i)
    row, where = self._rows[i]
    cfg, names = self._cfg, self._names
    if self._parallel and isinstance(row, dict) and columns.parallel(row):
      names = tuple(row)
    if cfg.rows == 'scored':
      return records.scored_pair(row, where, names, cfg.score_column)
    example = records.from_row(row, where, names, cfg.score_column)
    has_score = example.score is not None
    if has_score and cfg.min_score is None and (
        len(example.positives) == len(example.negatives) == 1):
      return records.by_margin(example)
    if has_score != self._scored:
      raise BadRow(
          f'{where}: source {cfg.name!r} has '
          + (f'a score ({example.score}) but no min_score; set min_score to the '
             'lowest score of a pair that counts as positive, or rows to '
             "'scored' for a loss by scores" if has_score else
             f'min_score {cfg.min_score}, but the row has no score'))
    return example


def _scored(cfg: SourceConfig) -> bool:
  """Whether rows are to have a score of their pair; of BEIR it is that of qrels."""
  return cfg.min_score is not None and cfg.kind != 'beir'


class _Kept(Sequence):
  """The rows of a score that is high enough."""

  def __init__(self, rows: Sequence[Example], cfg: SourceConfig):
    self._rows, self.skipped = rows, bad_rows.Skipped()
    self._kept = np.array([i for i, row in bad_rows.good(
        range(len(rows)), rows.__getitem__, cfg, self.skipped)
                           if row.score is not None and cfg.min_score is not None
                           and row.score >= cfg.min_score], np.int64)

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    return self._rows[int(self._kept[i])]


class _BothWays(Sequence):
  """Rows as they are, then all of them with query and positive swapped."""

  def __init__(self, rows: Sequence[Example]):
    self.examples = self._rows = rows

  def __len__(self) -> int:
    return 2 * len(self._rows)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    n = len(self._rows)
    return self._rows[i] if i < n else self._rows[i - n].swapped()
