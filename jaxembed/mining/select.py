"""Negatives chosen from a candidate table by rules, and what the rules did."""

from collections.abc import Iterator
import dataclasses

import numpy as np

from jaxembed.mining import rules as rules_
from jaxembed.mining.candidates import Table
from jaxembed.mining.collection import Collection
from jaxembed.mining.rules import REASONS, Rules

_QUERIES = 4096
_EXAMPLES = 3  # of each reason
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


@dataclasses.dataclass
class Selected:
  """A query's negatives, the best first."""

  query: int
  negatives: np.ndarray  # [n] documents
  scores: np.ndarray  # [n] float32, of the teacher whose scores are written
  positive_scores: np.ndarray  # [p] float32, in the order of Collection.positives_of


class Account:
  """What rules did: how many candidates each rejected, examples, quantiles of scores.

  Attributes:
    queries, candidates: how many were looked at.
    rejected: candidates by the first rule that they break.
    kept: candidates that break none.
    taken: negatives.
    short: queries with fewer negatives than asked for.
    examples: by reason, up to three (query, document, score, positive's score).
  """

  def __init__(self):
    self.queries = self.candidates = self.kept = self.taken = self.short = 0
    self.rejected = dict.fromkeys(REASONS, 0)
    self.examples: dict[str, list[tuple[int, int, float, float]]] = {}
    self._scores = {'positives': _Sample(), 'negatives': _Sample(),
                    'positive - negative': _Sample()}

  def quantiles(self) -> dict[str, list[float]]:
    """By what they are of, the scores at QUANTILES."""
    return {name: sample.quantiles() for name, sample in self._scores.items()}

  def add(self, first: int, why: np.ndarray, taken: np.ndarray, rules: Rules,
          rows: np.ndarray, score: np.ndarray, own: np.ndarray):
    """A block of queries from `first` on, [q,K]; own [q] is the positive's score."""
    self.queries += len(why)
    self.candidates += why.size
    self.kept += int((why < 0).sum())
    self.taken += int(taken.sum())
    self.short += int((taken.sum(1) < rules.num_negatives).sum())
    counts = np.bincount(why[why >= 0], minlength=len(REASONS))
    for number, name in enumerate(REASONS):
      self.rejected[name] += int(counts[number])
      shown = self.examples.setdefault(name, [])
      if counts[number] and name != 'positive' and len(shown) < _EXAMPLES:
        at = np.argwhere(why == number)[:_EXAMPLES - len(shown)]
        shown += [(first + int(q), int(rows[q, k]), float(score[q, k]), float(own[q]))
                  for q, k in at]
    query, place = np.nonzero(taken)
    negative = score[query, place]
    for name, values in (('positives', own), ('negatives', negative),
                         ('positive - negative', own[query] - negative)):
      self._scores[name].add(values)


class _Sample:
  """Enough values of a stream to read quantiles from, the same for every run."""

  def __init__(self, size: int = 1 << 20):
    self._size, self._step, self._seen = size, 1, 0
    self._parts: list[np.ndarray] = []
    self._ends = [np.inf, -np.inf]

  def add(self, values: np.ndarray):
    if not len(values):
      return
    self._ends = [min(self._ends[0], float(values.min())),
                  max(self._ends[1], float(values.max()))]
    self._parts.append(np.asarray(values[-self._seen % self._step::self._step]))
    self._seen += len(values)
    if sum(map(len, self._parts)) > self._size:  # every other one stays
      self._parts = [np.concatenate(self._parts)[::2]]
      self._step *= 2

  def quantiles(self) -> list[float]:
    if not self._parts:
      return [float('nan')] * len(QUANTILES)
    found = np.quantile(np.concatenate(self._parts), QUANTILES)
    return [self._ends[0], *map(float, found[1:-1]), self._ends[1]]


def select(texts: Collection, table: Table, rules: Rules, account: Account,
           written: str = '') -> Iterator[Selected]:
  """Negatives of every query, in the queries' order.

  Args:
    account: is told what the rules did.
    written: the teacher whose scores come back; '': the one that the rules ask.

  Raises:
    ValueError: there is no such teacher.
  """
  asked = (list(table.scores) if rules.teacher == 'every'
           else [rules.teacher or table.teacher])
  main = table.teacher if rules.teacher == 'every' else asked[0]
  written = written or main
  for name in (*asked, written):
    if name not in table.scores:
      raise ValueError(f'no teacher is called {name!r}; the table has '
                       f'{", ".join(table.scores)}')
  for first in range(0, len(texts.queries), _QUERIES):
    last = min(first + _QUERIES, len(texts.queries))
    rows, near = np.asarray(table.rows[first:last]), table.near[first:last]
    query, document = texts.of_queries(first, last)
    part = slice(texts.offsets[first], texts.offsets[last])
    scores = {name: np.asarray(table.scores[name][first:last])
              for name in {*asked, written}}
    own = {name: rules_.of_several(rules.positive, table.positives[name][part], query,
                                   last - first) for name in asked}
    is_positive = _among(rows, query, document)
    same = _same_text(texts, rows, query, document, first)
    why = rules_.reasons(rules, is_positive, same, near,
                         {name: scores[name] for name in asked}, own)
    order = _by_score(scores[main])
    kept = np.take_along_axis(why < 0, order, 1)
    taken = rules_.choose(rules, kept, first)
    ordered = np.take_along_axis(rows, order, 1)
    told = np.take_along_axis(scores[written], order, 1)
    back = np.empty_like(taken)
    np.put_along_axis(back, order, taken, 1)
    account.add(first, why, back, rules, rows, scores[main], own[main])
    positive_scores = table.positives[written]
    for q in range(last - first):
      a, b = texts.offsets[first + q:first + q + 2]
      yield Selected(first + q, ordered[q, taken[q]], told[q, taken[q]],
                     np.asarray(positive_scores[a:b]))


def _by_score(scores: np.ndarray) -> np.ndarray:
  """The order of falling scores; equals stay as they were found.  [q,K] -> [q,K]."""
  return np.argsort(-scores, axis=1, kind='stable')


def _among(rows: np.ndarray, query: np.ndarray, document: np.ndarray) -> np.ndarray:
  """Whether a row's candidates [q,K] are among the documents paired with it."""
  own = query.astype(np.int64) << 32 | document
  asked = np.arange(len(rows), dtype=np.int64)[:, None] << 32 | rows
  return np.isin(asked, own)


def _same_text(texts: Collection, rows: np.ndarray, query: np.ndarray,
               document: np.ndarray, first: int) -> np.ndarray:
  """Whether a candidate equals the query, or one of its positives, in letters."""
  keys = texts.document_keys[rows]
  same = keys == texts.query_keys[first:first + len(rows), None]
  starts = np.searchsorted(query, np.arange(len(rows) + 1))
  own = texts.document_keys[document]
  for n in range(int(np.diff(starts).max(initial=0))):
    have = np.flatnonzero(np.diff(starts) > n)
    same[have] |= keys[have] == own[starts[have] + n, None]
  return same
