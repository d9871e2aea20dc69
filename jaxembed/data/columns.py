"""Columns of a row: which is the query, the positive, the negatives, the score."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from jaxembed.data.fields import BadRow

QUERY = ('query', 'anchor', 'sentence1')
POSITIVE = ('positive', 'positives', 'pos', 'positive_passages', 'sentence2',
            'response')
NEGATIVE = ('negative', 'negatives', 'neg', 'negative_passages', 'rejected_response')
SCORE = ('score', 'scores', 'label', 'labels', 'similarity_score')
INSTRUCTION = ('instruction', 'prompt', 'query_instruction', 'query_prompt')
PASSAGE_INSTRUCTION = ('passage_instruction', 'passage_prompt')
_NUMBERED = re.compile(r'negative_(\d+)$')
_MOST_DIGITS = 20
# A code of ISO 639-1, with the writing or the country in some.
_LANGUAGE = re.compile(r'[a-z]{2}([-_][A-Za-z]{2,4})?$')


@dataclasses.dataclass(frozen=True)
class Known:
  """Of the columns that a row has, those of known names, by what they are."""

  query: tuple[str, ...]
  positive: tuple[str, ...]
  negative: tuple[str, ...]
  numbered: tuple[str, ...]  # negative_1, negative_2, ...
  score: tuple[str, ...]
  instruction: tuple[str, ...]
  passage_instruction: tuple[str, ...]


@functools.lru_cache(maxsize=256)
def known(names: tuple[str, ...]) -> Known:
  """The known ones of a row's columns: rows of a file mostly have the same."""
  def there(*wanted):
    return tuple(n for n in wanted if n in names)

  return Known(
      there(*QUERY), there(*POSITIVE), there(*NEGATIVE),
      tuple(n for n in names if n[:9] == 'negative_' and _NUMBERED.match(n)),
      there(*SCORE), there(*INSTRUCTION), there(*PASSAGE_INSTRUCTION))


def find(row: Mapping[str, Any], there: Known, where: str, columns: Sequence[str]
         ) -> tuple[str, str, list[str]]:
  """(the query's column, the positive's, those of negatives).

  Args:
    there: the row's known columns.
    columns: their names, where they are not among the known ones.

  Raises:
    BadRow: one is missing, or two could be the query or the positive.
  """
  if columns:
    if missing := [c for c in columns if c not in row]:
      raise BadRow(f'{where}: no column {missing[0]!r}, which columns={tuple(columns)} '
                   f'names; the row has {sorted(map(str, row))!s:.500}')
    return columns[0], columns[1], list(columns[2:])
  query = _only(row, 'query', there.query, QUERY, where)
  positive = _only(row, 'positive', there.positive, POSITIVE, where)
  numbered = _in_order(there.numbered, where) if there.numbered else []
  return query, positive, [*there.negative, *numbered]


def score(row: Mapping[str, Any], there: Known, named: str | None,
          taken: Sequence[str]) -> str | None:
  """The column of a pair's score; None without one.

  Args:
    there: the row's known columns.
    named: its name; '': none is, whatever the columns are called; None: one of the
      known names.
    taken: columns that are texts.
  """
  if named is not None or not there.score:
    return named or None
  return next((n for n in there.score
               if n not in taken and row.get(n) not in (None, '')), None)


def names_columns(cells: Sequence[str]) -> bool:
  """Whether a first line of cells surely names columns, and is not a row."""
  def has(*known):
    return any(c in known for c in cells)

  return (has(*QUERY) and has(*POSITIVE)) or (
      has('text', 'sentence') and has('label'))


def names_languages(cells: Sequence[str]) -> bool:
  """Whether a first line of two cells is a code for each of two languages."""
  return (len(cells) == 2 and cells[0] != cells[1]
          and all(map(_LANGUAGE.match, cells)))


def parallel(columns: Collection[str]) -> bool:
  """Whether columns are those of parallel text: one for each of two languages."""
  return len(columns) == 2 and not any(c in QUERY + POSITIVE for c in columns)


def _in_order(numbered: Sequence[str], where: str) -> list[str]:
  if long := next((n for n in numbered if len(n) > len('negative_') + _MOST_DIGITS),
                  None):
    raise BadRow(f'{where}: the column {long!r:.40}... has a number of more than '
                 f'{_MOST_DIGITS} digits; rename it')
  return sorted(numbered, key=lambda n: int(_NUMBERED.findall(n)[0]))


def _only(row, side: str, there: Sequence[str], wanted: Sequence[str], where: str
          ) -> str:
  """The one column of a side."""
  if len(there) == 1:
    return there[0]
  if not there:
    raise BadRow(
        f'{where}: no {side}; one of the fields {", ".join(wanted)} is needed, the '
        f'row has {sorted(map(str, row))!s:.500}. Name the columns with '
        "columns=('QUERY', 'POSITIVE', ...)")
  filled = [n for n in there if row[n] not in (None, '', [])]
  if len(filled) > 1:
    raise BadRow(
        f'{where}: the fields {" and ".join(map(repr, filled))} could each be the '
        f"{side}; name the columns with columns=('QUERY', 'POSITIVE', ...)")
  return (filled or there)[0]
