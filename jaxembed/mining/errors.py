"""What a model gets wrong, as requests to a language model for more such pairs.

A line of the file is a request in the form of OpenAI's batch files, which its batch
service, and `language_model.ask` one by one, take.
"""

from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxembed.files import place, whole_file
from jaxembed.mining import collection
from jaxembed.mining.candidates import Table
from jaxembed.mining.collection import Collection

_LONGEST = 2000  # characters of a text that is shown
_SYSTEM = ('You write training data for a retrieval model. Answer with one JSON object '
           'and nothing else.')
_USER = """A retrieval model ranked wrong passages above the right one.

Query: {query}

Right passage: {positive}

{wrong}

Write {count} new examples of the same difficulty, on neighbouring topics: a query, a \
passage that answers it, and a passage that looks like an answer and is none. Do not \
repeat the texts above. Answer with
{{"pairs": [{{"query": "...", "positive": "...", "negative": "..."}}]}}"""


@dataclasses.dataclass(frozen=True)
class Error:
  """A query whose positive does not stand where it should.

  Attributes:
    query: its number.
    positive: the document that answers it and scores best.
    wrong: documents that score higher, the best first.
    rank: how many do, within the table's depth; from 0.
  """

  query: int
  positive: int
  wrong: np.ndarray
  rank: int


def find(texts: Collection, table: Table, rank: int = 1) -> Iterator[Error]:
  """The queries of which `rank` or more documents score above every positive.

  By the teacher that searched; a document with the text of a positive is none of
  these.
  """
  scores, own = table.scores[table.teacher], table.positives[table.teacher]
  for query in range(len(texts.queries)):
    answers = texts.positives_of(query)
    right = own[slice(*texts.offsets[query:query + 2])]
    rows = np.asarray(table.rows[query])
    above = (scores[query] > right.max()) & ~np.isin(rows, answers) & ~np.isin(
        texts.document_keys[rows], texts.document_keys[answers])
    if above.sum() >= rank:
      yield Error(query, int(answers[right.argmax()]), rows[above], int(above.sum()))


@place.remote(writes=('target',))
def export(texts: Collection, table: Table, target: str | os.PathLike, *, model: str,
           rank: int = 1, pairs: int = 3, shown: int = 3, overwrite: bool = False
           ) -> int:
  """Writes a request for every error; returns how many.

  Args:
    model: the language model that the requests name.
    rank: see `find`.
    pairs: new examples that a request asks for.
    shown: wrong passages that it shows.

  Raises:
    FileExistsError: the file is there.
  """
  target = pathlib.Path(target)
  whole_file.refuse_existing(target, overwrite)
  count = 0
  with whole_file.opened(target) as file:
    for error in find(texts, table, rank):
      file.write(json.dumps(_request(texts, error, model, pairs, shown)) + '\n')
      count += 1
  return count


def _request(texts: Collection, error: Error, model: str, pairs: int, shown: int
             ) -> dict[str, Any]:
  wrong = collection.texts(texts.documents, error.wrong[:shown])
  (positive,) = collection.texts(texts.documents, [error.positive])
  asked = _USER.format(
      query=_cut(texts.queries[error.query][0]['text']), positive=_cut(positive),
      wrong='\n\n'.join(f'Wrong passage: {_cut(text)}' for text in wrong), count=pairs)
  return {'custom_id': f'query-{error.query}', 'method': 'POST',
          'url': '/v1/chat/completions', 'body': {'model': model, 'messages': [
              {'role': 'system', 'content': _SYSTEM},
              {'role': 'user', 'content': asked}]}}


def _cut(text: str) -> str:
  return text if len(text) <= _LONGEST else text[:_LONGEST] + ' ...'
