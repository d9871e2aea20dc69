"""One row of training data, whatever the shape it was stored in.

Rows in the shapes of sentence-transformers, FlagEmbedding and Tevatron are read
as they are. Every complaint names the file, the line and the field.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import math
import re
from typing import Any

_QUERY = ('query', 'anchor', 'sentence1')
_POSITIVE = ('positive', 'positives', 'pos', 'positive_passages', 'sentence2')
_NEGATIVE = ('negative', 'negatives', 'neg', 'negative_passages')
_NUMBERED = re.compile(r'negative_(\d+)$')
_SCORE = ('score', 'scores', 'label', 'labels', 'similarity_score')


class BadRow(ValueError):
  """A row that cannot be used; the message says where, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Passage:
  """A text a query may be compared with."""

  text: str
  id: str = ''  # the data's own, '' without one
  score: float | None = None  # of a teacher


@dataclasses.dataclass(frozen=True)
class Example:
  """A query, what answers it, and what does not."""

  query: str
  positives: tuple[Passage, ...]  # at least one
  negatives: tuple[Passage, ...] = ()
  query_id: str = ''
  instruction: str = ''  # the row's own
  score: float | None = None  # how well query and positive match, of scored pairs

  def swapped(self) -> 'Example':
    """Its first positive as the query, for tasks that have no direction."""
    first = self.positives[0]
    return dataclasses.replace(
        self, query=first.text, query_id=first.id,
        positives=(Passage(self.query, self.query_id),))


def from_row(row: Any, where: str, columns: Sequence[str] = ()) -> Example:
  """Reads one row.

  Args:
    row: a mapping of column names to values:
      query | anchor | sentence1;
      positive | pos | positive_passages | sentence2 (a text, a list of texts or
        a list of {docid, title, text});
      negative | neg | negative_passages likewise, or negative_1, negative_2, ...;
      optionally query_id, prompt | instruction, pos_scores, neg_scores, and a
      score of the pair. Other columns are left alone.
    where: 'file:line', for messages.
    columns: names of the query's, the positive's and any negatives' columns, for
      rows named otherwise.

  Raises:
    BadRow: a field is missing, empty or of another type.
  """
  if not isinstance(row, Mapping):
    raise BadRow(f'{where}: the row is {_kind(row)}, not an object of columns')
  query, positive, negative = _names(row, where, columns)
  negatives = [p for name in negative for p in _passages(row, name, where)]
  positives = _passages(row, positive, where)
  if not positives:
    raise BadRow(f'{where}: field {positive!r} is empty; a row needs at least one '
                 'positive. Remove the row or give it one')
  return Example(
      query=_text(row[query], query, where),
      positives=_scored(positives, row, 'pos_scores', where),
      negatives=_scored(negatives, row, 'neg_scores', where),
      query_id=str(row.get('query_id') or ''),
      instruction=_instruction(row, where),
      score=None if columns else _score(row, where))


def labelled(row: Any, where: str, columns: Sequence[str] = (), *,
             shown: bool = False) -> Example:
  """A text as the query and its label as the positive.

  Args:
    row: a mapping with text, label and optionally prompt | instruction.
    columns: names of the text's and the label's columns, for rows named otherwise.
    shown: the label serves as a text, which a number cannot.

  Raises:
    BadRow: a field is missing, empty or of another type.
  """
  if not isinstance(row, Mapping):
    raise BadRow(f'{where}: the row is {_kind(row)}, not an object of columns')
  text, label = columns or ('text', 'label')
  for name in (text, label):
    if name not in row:
      raise BadRow(f'{where}: no column {name!r}; the row has '
                   f"{sorted(map(str, row))}. Name the columns with columns=('TEXT', "
                   "'LABEL')")
  value = row[label]
  if isinstance(value, int) and not isinstance(value, bool) and not shown:
    value = str(value)
  return Example(_text(row[text], text, where),
                 (Passage(_text(value, label, where)),),
                 instruction=_instruction(row, where))


def text_id(text: str) -> int:
  """31 bits of a text's hash: equal texts, equal ids, in every process."""
  digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4)
  return int.from_bytes(digest.digest(), 'little') & 0x7FFFFFFF


def _names(row, where: str, columns) -> tuple[str, str, list[str]]:
  if columns:
    if missing := [c for c in columns if c not in row]:
      raise BadRow(f'{where}: no column {missing[0]!r}, which columns={tuple(columns)} '
                   f'names; the row has {sorted(row)}')
    return columns[0], columns[1], list(columns[2:])
  query = next((n for n in _QUERY if n in row), None)
  positive = next((n for n in _POSITIVE if n in row), None)
  for side, found, known in (('query', query, _QUERY),
                             ('positive', positive, _POSITIVE)):
    if found is None:
      raise BadRow(
          f'{where}: no {side}; one of the fields {", ".join(known)} is needed, the '
          f'row has {sorted(map(str, row))}. Name the columns with '
          "columns=('QUERY', 'POSITIVE', ...)")
  numbered = sorted((n for n in row if _NUMBERED.match(n)),
                    key=lambda n: int(_NUMBERED.match(n)[1]))
  return query, positive, [n for n in _NEGATIVE if n in row] + numbered


def _passages(row, name: str, where: str) -> list[Passage]:
  """The texts of a column; None and '' in a numbered or single column are absent."""
  value = row[name]
  if value is None:
    return []
  if isinstance(value, str | Mapping):
    return [_passage(value, name, where)]
  if not isinstance(value, Sequence):
    raise BadRow(f'{where}: field {name!r} is {_kind(value)}; give a text or a list '
                 'of texts')
  return [_passage(v, f'{name}[{i}]', where) for i, v in enumerate(value)]


def _passage(value, name: str, where: str) -> Passage:
  if not isinstance(value, Mapping):
    return Passage(_text(value, name, where))
  if 'text' not in value:
    raise BadRow(f"{where}: field {name!r} has no 'text'; it has {sorted(value)}")
  title = value.get('title') or ''
  body = _text(value['text'], f'{name}.text', where, empty=bool(title))
  key = value.get('docid', value.get('_id', value.get('id')))
  return Passage(f'{title} {body}'.strip() if title else body,
                 '' if key is None else str(key))


def _text(value, name: str, where: str, empty: bool = False) -> str:
  if not isinstance(value, str):
    raise BadRow(f'{where}: field {name!r} is {_kind(value)}, not a text')
  if not empty and not value.strip():
    raise BadRow(f'{where}: field {name!r} is an empty text; remove the row or the '
                 'entry')
  return value


def _scored(passages, row, name: str, where: str) -> tuple[Passage, ...]:
  scores = row.get(name)
  if scores is None or not passages:
    return tuple(passages)
  if not isinstance(scores, Sequence) or len(scores) != len(passages):
    raise BadRow(f'{where}: field {name!r} must be a list of {len(passages)} numbers, '
                 f'one for each text, and is {scores!r:.80}')
  return tuple(dataclasses.replace(p, score=_number(s, name, where))
               for p, s in zip(passages, scores))


def _score(row, where: str) -> float | None:
  name = next((n for n in _SCORE if row.get(n) is not None), None)
  return None if name is None else _number(row[name], name, where)


def _number(value, name: str, where: str) -> float:
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    raise BadRow(f'{where}: field {name!r} is {value!r:.40}, not a finite number')
  return number


def _instruction(row, where: str) -> str:
  value = row.get('instruction', row.get('prompt'))
  return '' if value in (None, '') else _text(value, 'instruction', where)


def _kind(value) -> str:
  return f'{type(value).__name__} {value!r:.40}'
