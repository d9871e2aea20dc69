"""Scores of other teachers: every pair of a candidate table out, its scores in."""

import hashlib
import json
import os
import pathlib

import numpy as np

from jaxembed.data import fields, files
from jaxembed.files import place, whole_file, whole_json
from jaxembed.files.alone import alone
from jaxembed.mining import candidates
from jaxembed.mining.candidates import Table
from jaxembed.mining.collection import Collection


@place.remote(writes=('target',))
def export(texts: Collection, table: Table, target: str | os.PathLike, *,
           overwrite: bool = False) -> int:
  """Writes each query with each of its candidates and positives; returns how many.

  {"query_number", "document_number", "query", "document"}: a cross-encoder's input.

  Raises:
    FileExistsError: the file is there.
  """
  target = pathlib.Path(target)
  whole_file.refuse_existing(target, overwrite)
  count = 0
  with whole_file.opened(target) as file:
    for query in range(len(texts.queries)):
      text = texts.queries[query][0]['text']
      wanted = dict.fromkeys([*texts.positives_of(query).tolist(),
                              *table.rows[query].tolist()])
      for document in wanted:
        file.write(json.dumps({
            'query_number': query, 'document_number': document, 'query': text,
            'document': texts.documents[document][0]['text']}, ensure_ascii=False)
            + '\n')
      count += len(wanted)
  return count


@place.remote(reads=('source',))
def read_scores(texts: Collection, teacher: str, source: str | os.PathLike) -> None:
  """Takes scores of all exported pairs in as a teacher's.

  source: .jsonl rows with query_number, document_number and score, in any order;
    other fields are left alone.

  Raises:
    ValueError: a row is malformed, or a pair of the table has no score, or two.
    FileExistsError: the table has other scores of this teacher.
  """
  candidates.check_name(teacher)
  table, folder = Table.load(texts), texts.folder / 'candidates'
  told = folder / f'scores-{teacher}.sums.json'
  with pathlib.Path(source).open('rb') as file:
    made = {'work': {'scores': hashlib.file_digest(file, 'sha256').hexdigest()}}
  if teacher in table.scores:
    if told.exists() and json.loads(told.read_bytes()) == made:
      return  # the same command again
    raise FileExistsError(f'the table has other scores of {teacher!r} already; give '
                          'another name')
  found = np.full(table.rows.shape, np.nan, np.float32)
  own = np.full(len(texts.positives), np.nan, np.float32)
  for row, where in files.JsonLines(source):
    query = _number(row, 'query_number', len(texts.queries), where)
    document = _number(row, 'document_number', len(texts.documents), where)
    score = fields.number(row.get('score'), 'score', where)
    part = slice(*texts.offsets[query:query + 2])
    for scores, numbers in ((found[query], table.rows[query]),
                            (own[part], texts.positives[part])):
      here = numbers == document
      if (twice := scores[here][~np.isnan(scores[here])]).size and (
          twice[0] != np.float32(score)):
        raise fields.BadRow(
            f'{where}: the score of query {query} and document {document} is {score}, '
            f'and was {twice[0]} in an earlier line; leave one of them out')
      scores[here] = score
  lacking = int(np.isnan(found).sum() + np.isnan(own).sum())
  if lacking:
    query = int(np.argmax(np.isnan(found).any(1)))
    raise ValueError(f'{source}: {lacking} pairs of the table have no score, first one '
                     f'of query {query}; score every pair that was exported')
  with alone(folder / 'scores.lock', f'table {folder}', 'wait'):
    for name, scores in ((f'positives-{teacher}', own), (f'scores-{teacher}', found)):
      with whole_file.opened(folder / f'{name}.npy', 'wb') as file:
        np.save(file, scores)
    whole_json.write(told, made)


def _number(row, name: str, count: int, where: str) -> int:
  found = row.get(name) if isinstance(row, dict) else None
  if type(found) is not int or not 0 <= found < count:
    raise ValueError(f'{where}: field {name!r} is {found!r}, not a number from 0 to '
                     f'{count - 1}')
  return found
