"""Okapi BM25 index over a list of texts in memory."""

import collections
from collections.abc import Sequence
import math
import re

import numpy as np

_WORD = re.compile(r'\w+')
_K1, _B = 1.2, 0.75  # Robertson & Zaragoza 2009


class Bm25:
  """An index of texts."""

  def __init__(self, texts: Sequence[str]):
    counts = [collections.Counter(_words(text)) for text in texts]
    sizes = np.array([c.total() for c in counts], np.float32)
    damping = _K1 * (1 - _B + _B * sizes / max(sizes.mean(), 1))
    found = collections.defaultdict(lambda: ([], []))
    for i, words in enumerate(counts):
      for word, count in words.items():
        found[word][0].append(i)
        found[word][1].append(count)
    self._size = len(texts)
    self._postings = {}  # word -> (texts that have it, what it adds to their score)
    for word, (at, count) in found.items():
      at, count = np.array(at), np.array(count, np.float32)
      rarity = math.log1p((len(texts) - len(at) + 0.5) / (len(at) + 0.5))
      self._postings[word] = at, rarity * (_K1 + 1) * count / (count + damping[at])

  def scores(self, query: str) -> np.ndarray:
    """What every text is worth: [N] float32, 0 where no word is shared."""
    total = np.zeros(self._size, np.float32)
    for word in _words(query):
      if word in self._postings:
        at, worth = self._postings[word]
        total[at] += worth
    return total


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())
