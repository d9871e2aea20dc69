"""Parsing of one row of training data into an Example.

Rows in the shapes of sentence-transformers, embedding-training-data, FlagEmbedding and
Tevatron are read as they are. Every complaint names the file, the line and the field.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import math
from typing import Any

from jaxembed.data import columns as column_names, fields, messages
from jaxembed.data.fields import BadRow


@dataclasses.dataclass(frozen=True)
class Passage:
  """A text a query may be compared with."""

  text: str
  id: str = ''  # the data's own, '' without one
  score: float | None = None  # of a teacher


@dataclasses.dataclass(frozen=True)
class Example:
  """A query with its positives and its negatives."""

  query: str
  positives: tuple[Passage, ...]  # at least one
  negatives: tuple[Passage, ...] = ()
  query_id: str = ''
  instruction: str = ''  # the row's own
  score: float | None = None  # how well query and positive match, of scored pairs
  # Any of the texts may be the query, and any other its positive.
  interchangeable: bool = dataclasses.field(default=False, repr=False)
  passage_instruction: str = dataclasses.field(default='', repr=False)  # the row's own
  type: str = dataclasses.field(default='', repr=False)  # FlagEmbedding's
  where: str = dataclasses.field(default='', repr=False, compare=False)  # 'file:line'

  def swapped(self) -> 'Example':
    """Its first positive as the query, for tasks that have no direction."""
    first = self.positives[0]
    return dataclasses.replace(
        self, query=first.text, query_id=first.id,
        positives=(Passage(self.query, self.query_id),))

  @property
  def scored(self) -> bool:
    """Whether a teacher scored one of its passages."""
    return any(p.score is not None for p in self.positives + self.negatives)


def from_row(row: Any, where: str, columns: Sequence[str] = (),
             score_column: str | None = None) -> Example:
  """Reads one row.

  Args:
    row: a mapping of column names to values:
      query | anchor | sentence1;
      positive | pos | positive_passages | sentence2 | response (a text, a list of texts
        or a list of {docid, title, text});
      negative | neg | negative_passages | rejected_response likewise, or negative_1,
        negative_2, ...;
      optionally query_id, prompt | instruction, passage_prompt | passage_instruction,
        type, pos_scores, neg_scores, and a score of the pair or a list of them: one for
        each positive and then each negative, or how much better the positive is than
        each negative.
      Other columns are left alone. Or {"set": [text, ...]}, texts that answer each
      other; a list [query, positive, negative, ...]; or ms-swift's messages,
      positive_messages and negative_messages.
      A negative that stands alone in its column is absent where it is empty.
    where: 'file:line', for messages.
    columns: names of the query's, the positive's and any negatives' columns, for
      rows named otherwise.
    score_column: name of the score's column; '': there is none, whatever the columns
      are called, and pos_scores and neg_scores are left alone; None: score | scores |
      label | labels | similarity_score.

  Raises:
    BadRow: a field is missing, empty, of another type, or not a text that a tokenizer
      can read; two columns could be the query or the positive.
  """
  if isinstance(row, list | tuple):
    row, columns = _named(row, where, columns)
  if not isinstance(row, dict | Mapping):
    raise BadRow(f'{where}: the row is {fields.kind(row)}, not an object of columns')
  if not columns:
    if messages.is_chat(row):
      row = messages.to_columns(row, where)
    elif 'set' in row and not any(
        n in row for n in column_names.QUERY + column_names.POSITIVE):
      return _set(row, where)
  there = column_names.known(tuple(row))
  query, positive, negative = column_names.find(row, there, where, columns)
  negatives = [p for name in negative for p in _negatives(row, name, where)]
  positives = _passages(row, positive, where)
  if not positives:
    raise BadRow(f'{where}: field {positive!r} is empty; a row needs at least one '
                 'positive. Remove the row or give it one')
  named = column_names.score(row, there, score_column, (query, positive, *negative))
  score: Any = _score(row, named, where) if named else None
  if named and isinstance(score, list):
    positives, negatives = _spread(positives, negatives, score, named, where)
    score = None
  if score_column != '':
    positives = _scored(positives, row.get('pos_scores'), 'pos_scores', where)
    negatives = _scored(negatives, row.get('neg_scores'), 'neg_scores', where)
  return Example(
      query=fields.text(row[query], query, where),
      positives=tuple(positives), negatives=tuple(negatives),
      query_id=fields.identifier(row.get('query_id'), 'query_id', where),
      instruction=_instruction(row, there.instruction, where),
      score=score,
      passage_instruction=_instruction(row, there.passage_instruction, where),
      type=_type(row), where=where)


def by_margin(example: Example) -> Example:
  """A triplet whose score says how much better its positive is than its negative.

  As in sentence-transformers' MarginMSELoss: losses that compare scores see their
  differences alone, so that the negative has 0 and the positive the margin.
  """
  (positive,), (negative,) = example.positives, example.negatives
  return dataclasses.replace(
      example, score=None,
      positives=(dataclasses.replace(positive, score=example.score),),
      negatives=(dataclasses.replace(negative, score=0.0),))


def labelled(row: Any, where: str, columns: Sequence[str] = (), *,
             shown: bool = False) -> Example:
  """A text as the query and its label as the positive.

  Args:
    row: a mapping with text | sentence, label and optionally prompt | instruction.
    columns: names of the text's and the label's columns, for rows named otherwise.
    shown: the label serves as a text, which a number cannot.

  Raises:
    BadRow: a field is missing, empty or of another type.
  """
  if not isinstance(row, Mapping):
    raise BadRow(f'{where}: the row is {fields.kind(row)}, not an object of columns')
  text, label = columns or (
      'text' if 'text' in row or 'sentence' not in row else 'sentence', 'label')
  for name in (text, label):
    if name not in row:
      raise BadRow(f'{where}: no column {name!r}; the row has '
                   f'{sorted(map(str, row))!s:.500}. Name the columns with '
                   "columns=('TEXT', 'LABEL')")
  value = row[label]
  if isinstance(value, int) and not isinstance(value, bool) and not shown:
    value = str(value)
  return Example(fields.text(row[text], text, where),
                 (Passage(fields.text(value, label, where)),),
                 instruction=_instruction(row, column_names.INSTRUCTION, where),
                 where=where)


def scored_pair(row: Any, where: str, columns: Sequence[str] = (),
                score_column: str | None = None) -> Example:
  """Two texts and a score of how alike they are.

  Args:
    row: a mapping as in `from_row`, with one query, one positive and a score; or a list
      of two texts and a score.
    columns: names of the columns of the two texts and the score.
    score_column: see `from_row`; of no concern where `columns` are named.

  Raises:
    BadRow: a field is missing, empty or of another type, or there are more texts.
  """
  if isinstance(row, list | tuple) and not columns:
    row, columns = _named(row, where, columns)
  if not isinstance(row, Mapping):
    raise BadRow(f'{where}: the row is {fields.kind(row)}, not an object of columns')
  if columns and len(columns) != 3:
    raise BadRow(f'{where}: the row has {len(columns)} cells; two texts and their '
                 'score are expected')
  found = from_row(row, where, tuple(columns[:2]), '' if columns else score_column)
  score = fields.number(row[columns[2]], columns[2], where) if (
      columns and columns[2] in row) else found.score
  if len(found.positives) != 1 or found.negatives:
    raise BadRow(f'{where}: the row has {1 + len(found.positives + found.negatives)} '
                 "texts; rows='scored' are of two texts and their score")
  if not isinstance(score, float):
    known = ', '.join(column_names.SCORE)
    raise BadRow(f'{where}: no score; one of the fields {known} is needed, '
                 "or name the columns with columns=('TEXT', 'TEXT', 'SCORE')")
  passage = dataclasses.replace(found.positives[0], score=score)
  return dataclasses.replace(found, positives=(passage,), score=None)


def text_id(text: str) -> int:
  """31 bits of a text's hash: equal texts, equal ids, in every process."""
  digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4)
  return int.from_bytes(digest.digest(), 'little') & 0x7FFFFFFF


def _named(row: Sequence, where: str, columns
           ) -> tuple[dict[str, Any], tuple[str, ...]]:
  """A list as a mapping, and the names of its columns."""
  if columns:
    raise BadRow(f'{where}: the row is a list, which has no columns '
                 f'{tuple(columns)}; leave columns out')
  if row and not isinstance(row[0], str):
    raise BadRow(f'{where}: the row is a list that begins with {fields.kind(row[0])}, '
                 f'not with the text of a query. {fields.ONE_ARRAY}')
  if len(row) < 2:
    raise BadRow(f'{where}: the row is a list of {len(row)}; a query and its positive, '
                 'and any negatives, are expected')
  named = {f'row[{i}]': value for i, value in enumerate(row)}
  return named, tuple(named)


def _set(row, where: str) -> Example:
  """Texts that mean the same, of which each step draws a query and its positive."""
  passages = _passages(row, 'set', where)
  texts = list({p.text: p for p in passages}.values())
  if len(texts) < 2:
    raise BadRow(f"{where}: field 'set' has {len(texts)} different texts; a query and "
                 'its positive need two')
  return Example(texts[0].text, tuple(texts[1:]), query_id=texts[0].id,
                 instruction=_instruction(row, column_names.INSTRUCTION, where),
                 interchangeable=True, where=where)


def _negatives(row, name: str, where: str) -> list[Passage]:
  """The texts of a column of negatives; one alone that is empty is absent."""
  value = row[name]
  if isinstance(value, str) and not value.strip():
    return []
  if isinstance(value, float) and math.isnan(value):
    return []  # how tables write an empty cell
  return _passages(row, name, where)


def _passages(row, name: str, where: str) -> list[Passage]:
  value = row[name]
  if value is None:
    return []
  if isinstance(value, str):
    return [Passage(fields.text(value, name, where))]
  if isinstance(value, Mapping):
    return [_passage(value, name, where)]
  if not isinstance(value, Sequence):
    raise BadRow(f'{where}: field {name!r} is {fields.kind(value)}; give a text or a '
                 'list of texts')
  return [_passage(v, f'{name}[{i}]', where) for i, v in enumerate(value)]


def _passage(value, name: str, where: str) -> Passage:
  if isinstance(value, str) or not isinstance(value, Mapping):
    return Passage(fields.text(value, name, where))
  if 'text' not in value:
    raise BadRow(f"{where}: field {name!r} has no 'text'; it has "
                 f'{sorted(map(str, value))!s:.200}')
  title = fields.text(value.get('title') or '', f'{name}.title', where, empty=True)
  body = fields.text(value['text'], f'{name}.text', where, empty=bool(title.strip()))
  key = next((k for k in ('docid', '_id', 'id') if value.get(k) is not None), None)
  own = fields.identifier(value[key], f'{name}.{key}', where) if key else ''
  return Passage(f'{title} {body}'.strip() if title else body, own)


def _scored(passages: Sequence[Passage], scores, name: str, where: str
            ) -> tuple[Passage, ...]:
  if scores is None or (passages and isinstance(scores, list) and not scores):
    return tuple(passages)
  if (not isinstance(scores, Sequence) or isinstance(scores, str)
      or len(scores) != len(passages)):
    raise BadRow(f'{where}: field {name!r} must be a list of {len(passages)} numbers, '
                 f'one for each text, and is {fields.kind(scores)}')
  if any(p.score is not None for p in passages):
    raise BadRow(f'{where}: the texts have scores in {name!r} and in another field; '
                 'leave one of them out')
  return tuple(dataclasses.replace(p, score=fields.number(s, name, where))
               for p, s in zip(passages, scores))


def _score(row, name: str, where: str) -> float | list:
  """The pair's score, or a list of them, in the column `name`."""
  if name not in row:
    raise BadRow(f'{where}: no column {name!r}, which score_column names; the row has '
                 f'{sorted(map(str, row))!s:.500}')
  if isinstance(row[name], list):
    return row[name]
  try:
    return fields.number(row[name], name, where)
  except BadRow as error:
    raise BadRow(f"{error}; where it is no score of the pair, set score_column='' of "
                 'the source') from None


def _spread(positives, negatives, scores: list, name: str, where: str):
  """(positives, negatives) with a list of scores, or of margins."""
  if len(scores) == len(positives) + len(negatives) == 1:
    raise BadRow(f'{where}: the score of a pair is the list {scores!r:.40}; give the '
                 'number alone')
  if len(positives) == 1 and len(scores) == len(negatives) > 0:
    below = [-fields.number(s, name, where) for s in scores]
    return (_scored(positives, [0.0], name, where),
            _scored(negatives, below, name, where))
  both = _scored([*positives, *negatives], scores, name, where)
  return both[:len(positives)], both[len(positives):]


def _instruction(row, names: Sequence[str], where: str) -> str:
  if not names:
    return ''
  found = {name: fields.text(row[name], name, where)
           for name in names if row.get(name) not in (None, '')}
  if len(set(found.values())) > 1:
    raise BadRow(f'{where}: the fields {" and ".join(map(repr, found))} differ; leave '
                 'one of them out')
  return next(iter(found.values()), '')


def _type(row) -> str:
  value = row.get('type')
  return value if isinstance(value, str) else ''
