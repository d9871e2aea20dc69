"""Scored pairs as contrastive examples, with negatives from the set's other texts."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxembed.config import SourceConfig
from jaxembed.data import bm25
from jaxembed.data.records import Example, Passage

_DEPTH = 32  # negatives of a row, of which a step draws
_BELOW = 0.95  # of the positive's match: NV-Retriever's rule, with BM25 as teacher


class Scored(Sequence):
  """Pairs of min_score or more; with `symmetric` each both ways.

  Negatives are the texts of the whole set that match the query best by BM25
  (NV-Embed-v1), but match less than the positive does. Left out is what the set
  itself scores above max_negative_score with the query or the positive.
  """

  def __init__(self, rows: Sequence[Example], cfg: SourceConfig):
    self._pairs: list[Example] = []
    self._near: dict[str, set[str]] = {}  # texts that are no negatives of a text
    texts: dict[str, int] = {}
    bar = cfg.max_negative_score
    for row in rows:
      ways = [row, row.swapped()]
      for way in ways:
        texts.setdefault(way.query, len(texts))
        near = self._near.setdefault(way.query, {way.query})
        if row.score >= cfg.min_score or (bar is not None and row.score > bar):
          near.add(way.positives[0].text)
      if row.score >= cfg.min_score:
        self._pairs += ways if cfg.symmetric else ways[:1]
    self._number, self._texts = texts, list(texts)
    self._index = bm25.Bm25(self._texts) if texts else None

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(i)
    pair = self._pairs[i]
    positive = pair.positives[0].text
    match = self._index.scores(pair.query)
    match[match > _BELOW * match[self._number[positive]]] = -1
    match[[self._number[t] for t in self._near[pair.query] | self._near[positive]]] = -1
    # Ties (no word shared, for one) fall to other texts for every row.
    best = (np.argsort(-np.roll(match, -i), kind='stable')[:_DEPTH] + i) % len(match)
    return dataclasses.replace(pair, negatives=tuple(
        Passage(self._texts[k]) for k in best if match[k] >= 0))
