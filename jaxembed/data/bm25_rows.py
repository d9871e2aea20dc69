"""Hard negatives found by BM25 among the other rows of a dataset."""

import collections
from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from jaxembed.config import SourceConfig
from jaxembed.data import bad_rows, bm25
from jaxembed.data.records import Example, Passage

_DEPTH = 32  # negatives of a row, of which a step draws
_BELOW = 0.95  # of the positive's match: NV-Retriever's rule, with BM25 as teacher


class Bm25Rows(Sequence):
  """Rows with up to 32 negatives more: what matches a query best by BM25.

  They are other rows' positives (with `symmetric`, queries too) that match less
  than the row's own. Left out is what the set pairs with the query or with its
  positive; of scored pairs, what it scores min_score or more, or above
  max_negative_score. Pairs scored below min_score are no rows; their texts may be
  negatives of other rows. All rows are held in memory.
  """

  def __init__(self, rows: Sequence[Example], cfg: SourceConfig):
    self._rows: list[Example] = []
    self.skipped = bad_rows.Skipped()
    self._near = collections.defaultdict(set)  # by text, what is no negative of it
    number: dict[str, int] = {}
    for _, row in bad_rows.good(range(len(rows)), rows.__getitem__, cfg, self.skipped):
      for way in (row, row.swapped()) if cfg.symmetric else (row,):
        texts = [p.text for p in way.positives]
        for text in texts:
          number.setdefault(text, len(number))
        if row.score is None or cfg.min_score is None or row.score >= cfg.min_score:
          self._rows.append(way)
        elif cfg.max_negative_score is None or row.score <= cfg.max_negative_score:
          continue
        self._near[way.query].update(texts)
    self._number, self._texts = number, list(number)

  @functools.cached_property
  def _index(self) -> bm25.Bm25:
    return bm25.Bm25(self._texts)  # costs too much for those who want a length

  @property
  def examples(self) -> Sequence[Example]:
    """The rows without the negatives found for them."""
    return self._rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    row = self._rows[i]
    match = self._index.scores(row.query)
    right = [p.text for p in row.positives]
    match[match > _BELOW * max(match[self._number[t]] for t in right)] = -1
    own = row.query, *right
    out = set(own).union(*(self._near.get(t, ()) for t in own))
    match[[self._number[t] for t in out if t in self._number]] = -1
    # Ties (no word shared, for one) fall to other texts for every row.
    best = (np.argsort(-np.roll(match, -i), kind='stable')[:_DEPTH] + i) % len(match)
    return dataclasses.replace(row, negatives=row.negatives + tuple(
        Passage(self._texts[k]) for k in best if match[k] >= 0))
