"""Training rows of a BEIR folder: a query, what it is judged to match, and not."""

from collections.abc import Iterable, Sequence
import hashlib
import os
import pathlib
from typing import Any
import warnings

import numpy as np

from jaxembed.data import beir, cache, files, qrels
from jaxembed.data.beir_texts import TextRows
from jaxembed.data.fields import BadRow


class BeirRows(Sequence):
  """A row for each query with a judged match in the corpus: ({columns}, 'file:line').

  Documents of the lowest gain or more are positives; those judged 0 are negatives. Of
  the corpus, where each document stands is held in memory, 16 bytes each; texts are
  read when they are asked for.

  Raises:
    BadRow: a line is malformed, an id comes twice, or nothing that is judged is there.
    FileNotFoundError: a file is missing.
  """

  def __init__(self, folder: str | os.PathLike, split: str = 'train',
               lowest: float | None = None, cache_dir: str = ''):
    there = beir.paths(folder, split)
    corpus = TextRows(there.corpus, cache_dir)
    self._corpus = corpus
    self._ids = _Ids(corpus, there.corpus, cache_dir)
    queries = [TextRows(path, cache_dir) for path in there.queries]
    self._queries = {t.id: t for rows in queries for t in rows}
    judged = qrels.read(there.qrels, self._queries, self._ids, cache_dir)
    self._read = corpus, *queries, files.Lines(there.qrels, cache_dir=cache_dir)
    lowest = 1 if lowest is None else lowest
    rows = [(query, [d for d, gain in found.items() if gain >= lowest],
             [d for d, gain in found.items() if gain <= 0])
            for query, found in judged.items()]
    self._rows = [row for row in rows if any(d in self._ids for d in row[1])]
    if left := len(rows) - len(self._rows):
      warnings.warn(f'{there.qrels}: {left} of {len(rows)} queries have no match '
                    f'of {lowest:g} or more in the corpus, and are no rows',
                    stacklevel=2)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> tuple[dict[str, Any], str]:
    query, positives, negatives = self._rows[i]
    found = self._queries[query]
    return {'query_id': query, 'query': found.text, 'pos': self._documents(positives),
            'neg': self._documents(negatives)}, found.where

  def digest(self) -> bytes:
    """SHA-256 of the digests of corpus, queries and judgements."""
    found = hashlib.sha256()
    for rows in self._read:
      found.update(rows.digest())
    return found.digest()

  def _documents(self, ids: Iterable[str]) -> list[dict[str, str]]:
    """The documents of some ids that the corpus has, with the ids."""
    found = []
    for key in ids:
      if (at := self._ids.find(key)) is not None:
        document = self._corpus[at]
        if document.id != key:
          raise BadRow(f'{document.where}: the ids {document.id!r} and {key!r} have '
                       'one hash; rename one of them')
        found.append({'docid': key, 'text': document.full})
    return found


class _Ids:
  """Where the document of an id stands: sorted hashes of ids, cached."""

  def __init__(self, corpus: Sequence, path: pathlib.Path, cache_dir: str):
    def make(folder: pathlib.Path) -> None:
      hashes = np.fromiter((_hash(t.id) for t in corpus), np.uint64, len(corpus))
      order = np.argsort(hashes, kind='stable')
      np.save(folder / 'hashes.npy', hashes[order])
      np.save(folder / 'places.npy', order)

    found = cache.folder(path, 'ids', make, cache_dir)
    self._hashes = cache.mapped(found / 'hashes.npy')
    self._places = cache.mapped(found / 'places.npy')
    same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
    if len(same):
      twice = corpus[int(self._places[same[0] + 1])]
      raise BadRow(f'{twice.where}: _id {twice.id!r} comes a second time')

  def __len__(self) -> int:
    return len(self._places)

  def __contains__(self, key: object) -> bool:
    return self.find(str(key)) is not None

  def find(self, key: str) -> int | None:
    wanted = np.uint64(_hash(key))
    at = int(np.searchsorted(self._hashes, wanted))
    there = at < len(self._hashes) and self._hashes[at] == wanted
    return int(self._places[at]) if there else None


def _hash(key: str) -> int:
  digest = hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8)
  return int.from_bytes(digest.digest(), 'little')
