"""Texts of a mining run: unique queries, unique documents, and who answers whom.

    queries.jsonl, documents.jsonl   {"text": ...}, a text once; numbers are line - 1
    pairs.npz    for query q the documents positives[offsets[q]:offsets[q + 1]], and of
                 every text a hash of its letters and digits
    collection.json                  what was read; written last
"""

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

import numpy as np

from jaxembed.data import files
from jaxembed.data.records import Example
from jaxembed.files import url, whole_json
from jaxembed.files.alone import alone
from jaxembed.files.vector_file import refuse_other

_DONE = 'collection.json'
_WITH_LAUNCHER = ('mine into a local folder and copy it, or use jaxembed mine, whose '
                  '--workdir may be a URL')
_NO_LETTER = re.compile(r'[\W_]+')


@dataclasses.dataclass(frozen=True)
class Collection:
  """Opened texts.

  Attributes:
    queries, documents: (row, 'file:line') by number; a row has 'text', and a query's
      maybe 'query_id' and 'instruction'.
    source: plain data that says what was read.
    offsets [Q+1], positives [P]: documents that answer each query, both int64.
    query_keys [Q], document_keys [C]: equal where letters and digits are, uint64.
  """

  folder: pathlib.Path
  source: dict[str, Any]
  queries: files.JsonLines
  documents: files.JsonLines
  offsets: np.ndarray
  positives: np.ndarray
  query_keys: np.ndarray
  document_keys: np.ndarray

  def positives_of(self, query: int) -> np.ndarray:
    """Numbers of the documents that answer a query."""
    return self.positives[self.offsets[query]:self.offsets[query + 1]]

  def of_queries(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """(query - first, document) of the positives of queries [first, last)."""
    counts = np.diff(self.offsets[first:last + 1])
    return (np.repeat(np.arange(last - first), counts),
            self.positives[self.offsets[first]:self.offsets[last]])


def collect(folder: str | os.PathLike, examples: Iterable[Example],
            corpus: Iterable[str], source: dict[str, Any]) -> Collection:
  """Writes the texts of rows and of a corpus, or finds them written.

  Documents are those of the corpus in its order, then the rows' positives, then
  their own negatives, each text once. Rows of one query are one query with all
  their positives.

  Args:
    source: plain data that says what is read; a folder of something else is refused.

  Raises:
    ValueError: the folder holds other texts, or there is no row.
  """
  folder = url.local(folder, _WITH_LAUNCHER)
  if (folder / _DONE).is_file():
    found = json.loads((folder / _DONE).read_bytes())
    if found['source'] != source:
      refuse_other(f'{folder} holds {found["queries"]} queries', found['source'],
                   source)
    return load(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with alone(folder / 'mining.lock', f'run {folder}', 'choose another folder'):
    _write(folder, examples, corpus, source)
  return load(folder)


def _write(folder: pathlib.Path, examples: Iterable[Example], corpus: Iterable[str],
           source: dict[str, Any]) -> None:
  documents, queries = _Texts(), _Texts()
  answers: list[dict[int, None]] = []
  partial = folder / 'collection.partial'
  shutil.rmtree(partial, ignore_errors=True)  # what a kill left
  partial.mkdir()
  try:
    with (partial / 'documents.jsonl').open('w') as write, (
        partial / 'queries.jsonl').open('w') as ask, (
        tempfile.TemporaryFile('w+', dir=folder)) as negatives:
      for text in corpus:
        documents.add(text, write, {'text': text})
      for row in examples:
        number = queries.add(row.query, ask, _query(row))
        if number == len(answers):
          answers.append({})
        for passage in row.positives:
          answers[number][documents.add(
              passage.text, write, {'text': passage.text})] = None
        for passage in row.negatives:
          negatives.write(json.dumps(passage.text) + '\n')
      negatives.seek(0)
      for line in negatives:
        text = json.loads(line)
        documents.add(text, write, {'text': text})
    if not answers:
      raise ValueError('there is no row to mine negatives for')
    with (partial / 'pairs.npz').open('wb') as file:
      np.savez(file, offsets=np.cumsum([0, *map(len, answers)]),
               positives=np.concatenate([list(a) for a in answers]).astype(np.int64),
               query_keys=queries.key_array(), document_keys=documents.key_array())
    for file in partial.iterdir():
      file.replace(folder / file.name)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  whole_json.write(folder / _DONE, {
      'source': source, 'queries': len(queries), 'documents': len(documents)})


def load(folder: str | os.PathLike) -> Collection:
  """The texts that `collect` wrote.

  Raises:
    FileNotFoundError: there are none.
  """
  folder = url.local(folder, _WITH_LAUNCHER)
  if not (folder / _DONE).is_file():
    raise FileNotFoundError(f'{folder} is no folder of a mining run ({_DONE}); begin '
                            'one with launch.mine --data=ROWS --model=MODEL')
  source = json.loads((folder / _DONE).read_bytes())['source']
  with np.load(folder / 'pairs.npz', allow_pickle=False) as pairs:
    return Collection(folder, source, files.JsonLines(folder / 'queries.jsonl'),
                      files.JsonLines(folder / 'documents.jsonl'), **pairs)


def key(text: str) -> int:
  """64 bits of a hash of a text's letters and digits, whatever their case."""
  plain = _NO_LETTER.sub('', text.casefold()) or text
  return int.from_bytes(_digest(plain)[:8], 'little')


def texts(rows: files.JsonLines, numbers: Iterable[int]) -> Iterator[str]:
  """The texts of these rows."""
  return (rows[int(n)][0]['text'] for n in numbers)


class _Texts:
  """Numbers of unique texts, of which only digests are held."""

  def __init__(self):
    self._number: dict[bytes, int] = {}
    self._keys: list[int] = []

  def __len__(self) -> int:
    return len(self._keys)

  def add(self, text: str, file, row: dict[str, Any]) -> int:
    """The number of a text; a new one is written."""
    digest = _digest(text)
    number = self._number.setdefault(digest, len(self._number))
    if number == len(self._keys):
      self._keys.append(key(text))
      file.write(json.dumps(row) + '\n')
    return number

  def key_array(self) -> np.ndarray:
    return np.array(self._keys, np.uint64)


def _query(row: Example) -> dict[str, Any]:
  more = {'query_id': row.query_id, 'instruction': row.instruction}
  return {'text': row.query} | {name: value for name, value in more.items() if value}


def _digest(text: str) -> bytes:
  return hashlib.blake2b(text.encode(), digest_size=16).digest()
