"""Overlap of training texts with evaluation sets: shared n-grams of words."""

from collections.abc import Iterable
import hashlib
import os
import pathlib
import re

import numpy as np

from jaxembed.config import SourceConfig
from jaxembed.data import beir, sources
from jaxembed.files import place

# A run of so many words that two texts share is hardly by chance; a shorter text
# counts as a whole.
WORDS = 8
# A word, or one character of a script that writes none.
_WORD = re.compile(r'[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+')


class Overlap:
  """The n-grams of some texts, to look others up in: 8 bytes each."""

  def __init__(self, texts: Iterable[str]):
    found = {gram for text in texts for gram in _grams(text)}
    self._grams = np.sort(np.fromiter(found, np.uint64, len(found)))

  def __contains__(self, text: object) -> bool:
    """Whether a text shares an n-gram with one of them."""
    grams = np.array(_grams(str(text)), np.uint64)
    if not len(self._grams) or not len(grams):
      return False
    at = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
    return bool((self._grams[at] == grams).any())


@place.remote(reads=('path',))
def evaluation_texts(path: str | os.PathLike, split: str = 'test') -> list[str]:
  """Queries and their right answers of a BEIR folder, or of a file of rows.

  Raises:
    BadRow, FileNotFoundError: as beir.load and sources.load.
  """
  if pathlib.Path(path).is_dir():
    task = beir.load(path, split)
    right = {d for judged in task.qrels.values() for d, gain in judged.items() if gain}
    return [*task.queries.values(), *(task.corpus[d] for d in right
                                      if d in task.corpus)]
  return source_texts(SourceConfig(name=str(path), path=str(path), score_column=''))


def source_texts(cfg: SourceConfig, given=None) -> list[str]:
  """Queries and positives of a source; `given`: see sources.load."""
  rows = sources.load(cfg, given=given)
  return [text for row in rows
          for text in (row.query, *(p.text for p in row.positives))]


def _grams(text: str) -> list[int]:
  """Hashes of the n-grams of a text; of a shorter one, of the whole."""
  words = _WORD.findall(text.lower())
  if not words:
    return []
  return [int.from_bytes(hashlib.blake2b(
      ' '.join(words[i:i + WORDS]).encode('utf-8', 'surrogatepass'),
      digest_size=8).digest(), 'little') for i in range(max(1, len(words) - WORDS + 1))]
