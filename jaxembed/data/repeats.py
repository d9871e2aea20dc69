"""Positives that a query has in other rows of its source: no negatives of it.

Sets of pairs name a query once for each of its answers. Which queries come again is
seen when the rows are read at the start; what is kept is theirs alone.
"""

import array
import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import unicodedata

import numpy as np

from jaxembed.data.records import Example, text_id
from jaxembed.data.text_ids import text_ids
from jaxembed.data.tokenise import Tokenizer

# Room that is made for them unasked: every place costs a comparison of all pairs.
ROOM = 8


class Repeats:
  """Which queries come in several rows, told from 16 bytes a pair."""

  def __init__(self, symmetric: bool):
    self._symmetric = symmetric
    self._rows, self._asked, self._answered = (array.array('q') for _ in range(3))

  def see(self, row: Example) -> None:
    """Takes a row in."""
    for query, answers in self._ways(row):
      key = _key(query)
      self._rows.append(key)
      self._asked.extend([key] * len(answers))
      self._answered.extend(map(text_id, answers))

  def answers(self, rows: Iterable[Example]) -> dict[str, tuple[str, ...]]:
    """Query -> its positives, of queries that have several in different rows.

    rows: the ones that were seen, again.
    """
    wanted = self._wanted()
    found = collections.defaultdict(dict)
    for row in rows if wanted else ():
      for query, answers in self._ways(row):
        if _key(query) in wanted:
          found[query].update(dict.fromkeys(answers))
    return {query: tuple(answers) for query, answers in found.items()}

  def _wanted(self) -> set[int]:
    """Keys of several rows and of several positives."""
    keys, rows = np.unique(np.array(self._rows, np.int64), return_counts=True)
    pairs = np.unique(np.stack([np.array(self._asked, np.int64),
                                np.array(self._answered, np.int64)]), axis=1)
    asked, positives = np.unique(pairs[0], return_counts=True)
    return set(keys[rows > 1].tolist()) & set(asked[positives > 1].tolist())

  def _ways(self, row: Example) -> Iterator[tuple[str, list[str]]]:
    texts = [row.query, *(p.text for p in row.positives)]
    yield texts[0], texts[1:]
    if row.interchangeable:
      for k in range(1, len(texts)):
        yield texts[k], texts[:k] + texts[k + 1:]
    elif self._symmetric:
      yield texts[1], texts[:1]


def most(answers: Mapping[str, Sequence[str]]) -> int:
  """The most positives of a query, whatever its case, accents and spaces; 0: none."""
  found = collections.defaultdict(set)
  for query, texts in answers.items():
    found[_key(query)].update(texts)
  return max(map(len, found.values()), default=0)


def ids(answers: Mapping[str, Sequence[str]], tokenizer: Tokenizer, *,
        prompts: tuple[str, str], lengths: tuple[int, int]) -> dict[int, np.ndarray]:
  """Id of a query -> the ids of its positives (see data/text_ids.py).

  prompts, lengths: what stands in front of queries and passages, and where they are
  cut.
  """
  if not answers:
    return {}
  passages = list(dict.fromkeys(t for texts in answers.values() for t in texts))
  asked, answered = (
      _ids(tokenizer, texts, prompt, cut) for texts, prompt, cut in zip(
          (list(answers), passages), prompts, lengths))
  number = dict(zip(passages, answered.tolist()))
  found = collections.defaultdict(dict)
  for query, texts in zip(asked.tolist(), answers.values()):
    found[query].update(dict.fromkeys(number[t] for t in texts))
  return {query: np.array(list(numbers), np.int32)
          for query, numbers in found.items() if len(numbers) > 1}


def fill(known: np.ndarray, answers: Sequence[Iterable[int]], positive: np.ndarray,
         here: np.ndarray) -> None:
  """Puts positives of other rows into the free places (-1) of `known` [Q,P].

  Those that stand in the batch come first, as far as this process knows it.

  Args:
    answers: of every row the ids of its query's positives.
    positive: [Q] id of the row's own.
    here: ids of the passages at hand.
  """
  there = set(here.tolist())
  for row, numbers, own in zip(known, answers, positive.tolist()):
    taken = {own, *row.tolist()}
    new = sorted((n for n in numbers if n not in taken), key=lambda n: n not in there)
    free = np.flatnonzero(row < 0)[:len(new)]
    row[free] = new[:len(free)]


def _ids(tokenizer: Tokenizer, texts: list[str], prompt: str, cut: int) -> np.ndarray:
  given = [prompt] * len(texts), [cut] * len(texts)
  return text_ids(tokenizer, texts, *given,
                  tokenizer.encode(texts, given[0], max_length=cut))


def _key(text: str) -> int:
  """Equal for texts that any tokenizer may read alike."""
  if not text.isascii():
    text = ''.join(c for c in unicodedata.normalize('NFKD', text)
                   if not unicodedata.combining(c))
  return text_id(' '.join(text.casefold().split()))
