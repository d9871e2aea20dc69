"""Readers of rows: what a SourceConfig names, opened as it stands there."""

from collections.abc import Sequence
import dataclasses
import pathlib
import warnings

from jaxembed.config import SourceConfig
from jaxembed.config.source import FILES, kind_of, suffixes
from jaxembed.data import (
    arrow_rows,
    beir_rows,
    columns,
    files,
    hub_datasets,
    memory,
    mined_rows,
    tfds_source,
)
from jaxembed.data.fields import BadRow
from jaxembed.files import place, url


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
  cfg = _here(cfg)
  if cfg.kind == 'tfds':
    return tfds_source.TfdsRows(cfg.path, cfg.split, cfg.data_dir)
  if cfg.kind == 'datasets':
    return hub_datasets.DatasetRows(cfg.path, cfg.subset, cfg.split)
  if cfg.kind == 'mined':
    return mined_rows.open_rows(cfg.path)
  if cfg.kind == 'beir':
    return beir_rows.BeirRows(cfg.path, cfg.split, cfg.min_score, cfg.cache_dir)
  return files.Joined([_file(path, cfg) for path in paths(cfg)])


def _here(cfg: SourceConfig) -> SourceConfig:
  """The source with copies of its files on this machine in the place of URLs."""
  url.local(cfg.data_dir, 'copy the prepared dataset to a local data_dir')
  url.local(cfg.cache_dir, 'give a local cache_dir')
  if not any(url.of(path) for path in (cfg.path, *cfg.paths)):
    return cfg
  path, *more = (str(place.fetched(path)) if url.of(path) else path
                 for path in (cfg.path, *cfg.paths))
  return dataclasses.replace(cfg, path=path, paths=tuple(more))


def paths(cfg: SourceConfig) -> list[pathlib.Path]:
  """The files of a source that is made of files, those of each path sorted."""
  found = []
  for path in (cfg.path, *cfg.paths):
    try:
      found += files.expand(path, suffixes(cfg.kind))
    except FileNotFoundError as error:
      raise FileNotFoundError(f'{error}{_other_kinds(path)}') from None
  return list(dict.fromkeys(found))


def _other_kinds(path: str) -> str:
  """What kind to name instead, by the files that a folder does have."""
  folder = pathlib.Path(path).expanduser()
  if not folder.is_dir():
    return ''
  if hub_datasets.is_saved(folder):
    return ". It was written by save_to_disk; set kind='datasets'"
  there = {kind_of(p.name) for p in folder.iterdir()}
  kinds = [kind for kind in FILES if kind in there]
  return f'. It has files of kind {", ".join(kinds)}; set kind' if kinds else ''


def _file(path: pathlib.Path, cfg: SourceConfig) -> Sequence:
  if cfg.kind == 'jsonl':
    return files.JsonLines(path, cfg.cache_dir)
  if cfg.kind in ('parquet', 'arrow'):
    return arrow_rows.ArrowRows(path, cfg.cache_dir)
  return _cells(path, cfg)


def _cells(path: pathlib.Path, cfg: SourceConfig) -> Sequence:
  """The rows of a TSV or CSV file, whose first line names columns or is a row."""
  csv = cfg.kind == 'csv'
  cells = files.Cells(cfg.delimiter or (',' if csv else '\t'),
                      csv if cfg.quoted is None else cfg.quoted)
  if cfg.header is False:
    return (files.TsvRows(path, cfg.columns, cells, cfg.cache_dir) if cfg.columns else
            files.TsvLists(path, cells, cfg.cache_dir))
  rows = files.TsvRows(path, (), cells, cfg.cache_dir)
  if cfg.header or cfg.columns or columns.names_columns(rows.columns):
    return rows
  if columns.names_languages(rows.columns):
    warnings.warn(f'{path}:1: the first line ({" | ".join(rows.columns)}) is taken for '
                  f'the names of two languages; set header of source {cfg.name!r} to '
                  'True, or to False if it is a row', stacklevel=2)
    return rows
  raise BadRow(
      f'{path}:1: the first line ({" | ".join(rows.columns)!s:.120}) may name the '
      f'columns or be a row; set header of source {cfg.name!r} to True (then columns '
      'too) or to False (a query, its positive and any negatives)')
