"""Inputs of a mining run: rows by a source's rules, and files of more documents."""

from collections.abc import Iterator
import hashlib
import os

from jaxembed.config import SourceConfig
from jaxembed.data import sources, text_rows
from jaxembed.data.fingerprint import fingerprint
from jaxembed.files import place
from jaxembed.mining import collection


def collect(folder: str | os.PathLike, rows: SourceConfig,
            corpus: str | os.PathLike | None = None, field: str = 'text'
            ) -> collection.Collection:
  """The texts of a run (collection.collect) from files.

  Args:
    corpus: documents beside the rows' own: a .txt or .jsonl file, maybe gzipped.
    field: which field of its JSON objects is the text; one called title stands in
      front of it, as in BEIR.
  """
  opened = sources.opened(rows)
  examples = sources.examples(rows, opened)
  source = {'rows': fingerprint(rows, examples, opened),
            'columns': list(rows.columns), 'corpus': _digest(corpus), 'field': field}
  documents = _documents(corpus, field) if corpus else ()
  return collection.collect(
      folder, (examples[i] for i in range(len(examples))), documents, source)


def _documents(corpus: str | os.PathLike, field: str) -> Iterator[str]:
  for row in text_rows.rows(place.fetched(corpus), field, titles=True):
    if row.text.strip():
      yield row.text


def _digest(file: str | os.PathLike | None) -> str:
  if file is None:
    return ''
  with place.fetched(file).open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()
