"""A teacher's vectors of training texts, found by the texts themselves.

A teacher's folder holds two vector stores (jaxembed/store), `queries` and `passages`,
whose ids are `key(text)`: launch/teach.py makes it. Of several teachers the vectors,
each of length 1, stand behind one another over the root of their number, so that their
cosine is the mean of the teachers'.
"""

from collections.abc import Sequence
import hashlib
import pathlib

import numpy as np

from jaxembed import store
from jaxembed.data.choice import Row
from jaxembed.data.fields import BadRow
from jaxembed.data.records import Example

SIDES = 'queries', 'passages'
_TINY = np.float32(1e-12)


def key(text: str) -> str:
  """The id of a text in a teacher's stores."""
  return hashlib.blake2b(
      text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()


class Teacher:
  """The vectors of one or several teachers.

  Attributes:
    width: M, of all together.
  """

  def __init__(self, folders: Sequence[str], name: str):
    """Raises FileNotFoundError or ValueError, naming the source `name`, where a folder
    is not a teacher's."""
    self._folders = [pathlib.Path(f) for f in folders]
    try:
      self._stores = {side: [store.open(f / side) for f in self._folders]
                      for side in SIDES}
    except (FileNotFoundError, ValueError) as error:
      raise type(error)(f'source {name!r}: teacher={tuple(folders)}: {error}; '
                        'jaxembed teach makes such folders') from None
    widths = {side: [s.width for s in found] for side, found in self._stores.items()}
    if widths['queries'] != widths['passages']:
      raise ValueError(f'source {name!r}: teacher={tuple(folders)}: queries are '
                       f'{widths["queries"]} wide and passages {widths["passages"]}; '
                       'one model makes both')
    self.width = sum(widths['queries'])

  def vectors(self, side: str, texts: Sequence[str], where: Sequence[str]
              ) -> np.ndarray:
    """[n, width] float32, of length 1 each (0 where a teacher gave zeros).

    Raises:
      BadRow: a text has none; where: of each text, 'file:line'.
    """
    if not texts:
      return np.zeros((0, self.width), np.float32)
    keys, found = [key(t) for t in texts], []
    for folder, vectors in zip(self._folders, self._stores[side], strict=True):
      at = vectors.find(keys)
      if (at < 0).any():
        first = int(np.argmax(at < 0))
        raise BadRow(f'{where[first]}: {folder / side} has no vector of '
                     f'{texts[first]!r:.60}; give the command jaxembed teach again, '
                     'with --overwrite')
      x = vectors.rows(at)
      found.append(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _TINY))
    return np.concatenate(found, 1) / np.float32(len(found)**0.5)

  def check(self, example: Example) -> None:
    """Raises BadRow if a text of a row has no vector."""
    for side, texts in zip(SIDES, texts_of(example), strict=True):
      self.vectors(side, texts, [example.where] * len(texts))


def texts_of(example: Example) -> tuple[list[str], list[str]]:
  """The texts of a row that may be a query, and those that may be passages."""
  passages = [p.text for p in example.positives + example.negatives]
  if example.interchangeable:
    both = [example.query, *passages]
    return both, both
  return [example.query], passages


def of_rows(teachers: Sequence[Teacher | None], rows: Sequence[Row]
            ) -> tuple[np.ndarray, np.ndarray] | None:
  """(Vectors of the rows' queries [Q,M], of all their passages [sum,M]), NaN in rows of
  sources without a teacher; None where there is no teacher.

  teachers: of every source.
  """
  wide = next((t.width for t in teachers if t), 0)
  if not wide:
    return None
  counts = [len(r.passages) for r in rows]
  group = np.array([-1 if r.bad else r.group for r in rows])
  of_passage = np.repeat(np.arange(len(rows)), counts)
  query = np.full((len(rows), wide), np.nan, np.float32)
  passage = np.full((sum(counts), wide), np.nan, np.float32)
  texts = [p for r in rows for p in r.passages]
  for number, teacher in enumerate(teachers):
    here = np.flatnonzero(group == number).tolist()
    if teacher is None or not here:
      continue
    query[here] = teacher.vectors(
        'queries', [rows[i].query for i in here], [rows[i].where for i in here])
    mine = np.flatnonzero(np.isin(of_passage, here)).tolist()
    passage[mine] = teacher.vectors(
        'passages', [texts[i] for i in mine],
        [rows[of_passage[i]].where for i in mine])
  return query, passage
