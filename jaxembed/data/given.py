"""Sources of a mixture from what a caller gives: rows, a path, several by name."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from jaxembed.config import SourceConfig
from jaxembed.config.source import FILES, kind_of
from jaxembed.data import beir, hub_datasets
from jaxembed.files import place

_SPLITS = {'train', 'test', 'validation', 'valid', 'dev', 'eval'}
_SIDES = {'query': 'query_prompt', 'document': 'passage_prompt',
          'passage': 'passage_prompt'}


@dataclasses.dataclass(frozen=True)
class Given:
  """Sources, and the rows of those that are in memory, by the source's name."""

  sources: list[SourceConfig]
  rows: dict[str, Any]


def given(data: Any, name: str) -> Given:
  """What an argument called `name` says of data.

  Args:
    data: rows in memory (data/memory.py), the path of a file or folder, a
      SourceConfig, a list of them, or a dict of any of these by name.

  Raises:
    TypeError, ValueError: nothing of the kind, or no rows; with what to give.
  """
  if isinstance(data, SourceConfig):
    return Given([data], {})
  if isinstance(data, list | tuple) and data and all(
      isinstance(x, SourceConfig) for x in data):
    return Given(list(data), {})
  if isinstance(data, str | os.PathLike):
    path = os.fspath(data)
    return Given([SourceConfig(name=name, kind=_kind(path, name), path=path)], {})
  if isinstance(data, Mapping) and data and not _is_columns(data):
    if len(data) > 1 and set(data) <= _SPLITS:
      raise ValueError(f'{name} has the splits {", ".join(data)}; give one of them, '
                       f'such as {name}[{next(iter(data))!r}]')
    each = [given(value, str(key)) for key, value in data.items()]
    return Given([s for g in each for s in g.sources],
                 {key: rows for g in each for key, rows in g.rows.items()})
  _check_rows(data, name)
  return Given([SourceConfig(name=name, kind='memory')], {name: data})


def with_prompts(sources: Sequence[SourceConfig], prompts: Mapping[str, str]
                 ) -> list[SourceConfig]:
  """The sources with texts in front of their sides, {'query': ..., 'document': ...}.

  Raises:
    ValueError: other names, or a source that has prompts of its own.
  """
  if not isinstance(prompts, Mapping) or not prompts or set(prompts) - set(_SIDES):
    raise ValueError(f"prompts is {prompts!r:.80}; give {{'query': TEXT, 'document': "
                     'TEXT} or one of them')
  for source in sources:
    if source.query_prompt or source.passage_prompt:
      raise ValueError(f'source {source.name!r} has prompts of its own; leave out '
                       'prompts=')
  sides = {_SIDES[side]: text for side, text in prompts.items()}
  return [dataclasses.replace(s, **sides) for s in sources]


def _is_columns(data: Mapping) -> bool:
  """Whether a mapping is columns with their cells, and not several sets of rows."""
  return any(isinstance(cells, list | tuple) and cells and isinstance(cells[0], str)
             for cells in data.values())


def _check_rows(data: Any, name: str) -> None:
  if not (hasattr(data, '__len__') and hasattr(data, '__getitem__')):
    raise TypeError(
        f'{name} is {type(data).__name__}, which has no rows with numbers; give a list '
        'of dicts or tuples, a datasets.Dataset, a table, or the path of a file '
        '(list(...) makes a list of an iterator)')
  if not len(data):
    raise ValueError(f'{name} has no rows; a row is a query and its positive, such as '
                     "{'query': ..., 'positive': ...} or (query, positive)")
  if isinstance(data, Sequence) and isinstance(data[0], str):
    raise TypeError(f'{name}[0] is the text {data[0]!r:.40}; a row is a query and its '
                    "positive, such as {'query': ..., 'positive': ...} or (query, "
                    'positive)')


def _kind(path: str, name: str) -> str:
  """The kind of a file or of those in a folder, by their names.

  Raises:
    ValueError: nothing there is called so.
  """
  here = place.fetched(path)
  if beir.is_folder(here):
    return 'beir'
  if hub_datasets.is_saved(here):
    return 'datasets'
  files = here.iterdir() if here.is_dir() else [here]
  kinds = {kind_of(f.name) for f in files} - {''}
  if len(kinds) != 1:
    raise ValueError(
        f'{name} is {path!r}, whose kind its name does not tell; give a file or folder '
        f'of .{", .".join(FILES)} (.gz and .zst too), a BEIR folder, or a SourceConfig '
        'with kind')
  return kinds.pop()
