"""Columns of a row: which is the query, the positive, the negatives, the score."""

from collections.abc import Collection, Mapping, Sequence
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


def find(row: Mapping[str, Any], where: str, columns: Sequence[str]
         ) -> tuple[str, str, list[str]]:
  """(the query's column, the positive's, those of negatives).

  columns: their names, where they are not among the known ones.

  Raises:
    BadRow: one is missing, or two could be the query or the positive.
  """
  if columns:
    if missing := [c for c in columns if c not in row]:
      raise BadRow(f'{where}: no column {missing[0]!r}, which columns={tuple(columns)} '
                   f'names; the row has {sorted(map(str, row))!s:.500}')
    return columns[0], columns[1], list(columns[2:])
  query = _only(row, 'query', QUERY, where)
  positive = _only(row, 'positive', POSITIVE, where)
  numbered = [n for n in row if n[:9] == 'negative_' and _NUMBERED.match(n)]
  if numbered:
    numbered = _in_order(numbered, where)
  return query, positive, [n for n in NEGATIVE if n in row] + numbered


def score(row: Mapping[str, Any], named: str | None, taken: Sequence[str]
          ) -> str | None:
  """The column of a pair's score; None without one.

  Args:
    named: its name; '': none is, whatever the columns are called; None: one of the
      known names.
    taken: columns that are texts.
  """
  if named is not None:
    return named or None
  return next((n for n in SCORE if n not in taken and row.get(n) not in (None, '')),
              None)


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


def _in_order(numbered: list[str], where: str) -> list[str]:
  if long := next((n for n in numbered if len(n) > len('negative_') + _MOST_DIGITS),
                  None):
    raise BadRow(f'{where}: the column {long!r:.40}... has a number of more than '
                 f'{_MOST_DIGITS} digits; rename it')
  return sorted(numbered, key=lambda n: int(_NUMBERED.findall(n)[0]))


def _only(row, side: str, known: Sequence[str], where: str) -> str:
  """The one column of a side."""
  there = [n for n in known if n in row]
  if len(there) == 1:
    return there[0]
  if not there:
    raise BadRow(
        f'{where}: no {side}; one of the fields {", ".join(known)} is needed, the '
        f'row has {sorted(map(str, row))!s:.500}. Name the columns with '
        "columns=('QUERY', 'POSITIVE', ...)")
  filled = [n for n in there if row[n] not in (None, '', [])]
  if len(filled) > 1:
    raise BadRow(
        f'{where}: the fields {" and ".join(map(repr, filled))} could each be the '
        f"{side}; name the columns with columns=('QUERY', 'POSITIVE', ...)")
  return (filled or there)[0]
