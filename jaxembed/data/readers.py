"""Readers of rows: what a SourceConfig names, opened as it stands there."""

from collections.abc import Sequence
import pathlib
import warnings

from jaxembed.config import SourceConfig
from jaxembed.data import files, memory, records, tfds_source
from jaxembed.data.fields import BadRow


def open_rows(cfg: SourceConfig, given: memory.Rows | None = None) -> Sequence:
  """The rows of a source as they stand in its file or elsewhere: (row, where).

  With a method `digest`, those that can tell what they are read from in full.

  Args:
    given: by name of a source of kind 'memory', its rows.

  Raises:
    BadRow: a file that is none of its kind.
    FileNotFoundError: the path names nothing, or no rows are given.
  """
  if cfg.kind == 'memory':
    return memory.of(given, cfg.name)
  if cfg.kind == 'tfds':
    return tfds_source.TfdsRows(cfg.path, cfg.split, cfg.data_dir)
  return files.Joined([files.JsonLines(p) if cfg.kind == 'jsonl' else _tsv(p, cfg)
                       for p in paths(cfg)])


def _tsv(path: pathlib.Path, cfg: SourceConfig) -> Sequence:
  """The rows of a TSV file, whose first line names columns or is the first row."""
  if cfg.header is False:
    return files.TsvRows(path, cfg.columns) if cfg.columns else files.TsvLists(path)
  rows = files.TsvRows(path)
  if cfg.header or cfg.columns or records.names_columns(rows.columns):
    return rows
  if records.names_languages(rows.columns):
    warnings.warn(f'{path}:1: the first line ({" | ".join(rows.columns)}) is taken for '
                  f'the names of two languages; set header of source {cfg.name!r} to '
                  'True, or to False if it is a row', stacklevel=2)
    return rows
  raise BadRow(
      f'{path}:1: the first line ({" | ".join(rows.columns)!s:.120}) may name the '
      f'columns or be a row; set header of source {cfg.name!r} to True (then columns '
      'too) or to False (a query, its positive and any negatives)')


def paths(cfg: SourceConfig) -> list[pathlib.Path]:
  """The files of a source of kind jsonl or tsv, sorted."""
  return files.expand(cfg.path, (f'.{cfg.kind}', f'.{cfg.kind}.gz'))
