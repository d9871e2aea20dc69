"""Opens what a SourceConfig names: a sequence of Examples."""

from collections.abc import Sequence
import pathlib

import numpy as np

from jaxembed.config import SourceConfig
from jaxembed.data import files, labelled, mined, prompts, python_source, tfds_source
from jaxembed.data.records import BadRow, Example, from_row


def load(cfg: SourceConfig, check_rows: int = 0) -> Sequence[Example]:
  """The rows of a source, parsed as they are asked for.

  Args:
    check_rows: so many rows, spread evenly, are read now, so that a bad one shows
      before training does.

  Raises:
    BadRow: a checked row cannot be used, or there is none at all.
    FileNotFoundError: the path names nothing.
  """
  rows = _examples(cfg)
  if not len(rows):
    raise BadRow(f'source {cfg.name!r} ({cfg.kind} {cfg.path!r}) has no rows'
                 + (f' with a score of {cfg.min_score} or more' if cfg.min_score
                    else ''))
  if check_rows:
    for i in range(0, len(rows), -(-len(rows) // check_rows)):
      _need_instruction(cfg, rows[i], i)
  # Mined rows have been turned round already, for negatives of their own.
  return _BothWays(rows) if cfg.symmetric and cfg.rows != 'mined' else rows


def draw(rows: Sequence[Example], i: int, negatives: int,
         rng: np.random.Generator) -> Example:
  """Row i; what a row does not name itself is drawn from `rng`."""
  if isinstance(rows, labelled.Labelled):
    return rows.draw(i, negatives, rng)
  return rows[i]


def _examples(cfg: SourceConfig) -> Sequence[Example]:
  if cfg.kind == 'python_source':
    return python_source.read(cfg.split, cfg.limit)
  if cfg.rows in ('same_label', 'label_text'):
    return labelled.Labelled(_open(cfg), cfg)
  rows = _Parsed(_open(cfg), cfg)
  if cfg.rows == 'mined':
    return mined.Mined(rows, cfg)
  return rows if cfg.min_score is None else _Kept(rows, cfg.min_score)


def _open(cfg: SourceConfig) -> Sequence:
  if cfg.kind == 'tfds':
    return tfds_source.TfdsRows(cfg.path, cfg.split, cfg.data_dir)
  reader = {'jsonl': files.JsonLines, 'tsv': files.TsvRows}[cfg.kind]
  return files.Joined([reader(p) for p in paths(cfg)])


def paths(cfg: SourceConfig) -> list[pathlib.Path]:
  """The files of a source of kind jsonl or tsv, sorted."""
  return files.expand(cfg.path, (f'.{cfg.kind}', f'.{cfg.kind}.gz'))


def _need_instruction(cfg: SourceConfig, row: Example, i: int) -> None:
  if (prompts.needs_instruction(cfg.query_prompt + cfg.passage_prompt)
      and not cfg.instructions and not row.instruction):
    raise BadRow(
        f'source {cfg.name!r}, row {i}: a prompt asks for an {{instruction}}, but the '
        "row has no field 'instruction' or 'prompt'; set the source's instructions")


class _Parsed(Sequence):
  """Raw rows as Examples."""

  def __init__(self, rows: Sequence, cfg: SourceConfig):
    self._rows, self._cfg = rows, cfg
    self._len = min(len(rows), cfg.limit) if cfg.limit else len(rows)

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < self._len:
      raise IndexError(i)
    row, where = self._rows[i]
    columns = tuple(self._cfg.columns)
    if not columns and self._cfg.kind == 'tsv' and len(row) == 2:
      columns = tuple(row)  # parallel text: a column for each language
    example = from_row(row, where, columns)
    has_score = example.score is not None
    if has_score != (self._cfg.min_score is not None):
      raise BadRow(
          f'{where}: source {self._cfg.name!r} has '
          + (f'a score ({example.score}) but no min_score; set min_score to the '
             'lowest score of a pair that counts as positive' if has_score else
             f'min_score {self._cfg.min_score}, but the row has no score'))
    return example


class _Kept(Sequence):
  """The rows of a score that is high enough."""

  def __init__(self, rows: Sequence[Example], min_score: float):
    self._rows = rows
    self._kept = np.array([i for i, row in enumerate(rows)
                           if row.score >= min_score], np.int64)

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    return self._rows[int(self._kept[i])]


class _BothWays(Sequence):
  """Rows as they are, then all of them with query and positive swapped."""

  def __init__(self, rows: Sequence[Example]):
    self._rows = rows

  def __len__(self) -> int:
    return 2 * len(self._rows)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    n = len(self._rows)
    return self._rows[i] if i < n else self._rows[i - n].swapped()
