"""A mining run: a folder of texts, vectors, candidates and the rows made of them.

    queries.jsonl ...    mining/collection.py
    vectors/TEACHER/     documents and queries, two vector stores
    candidates/          mining/candidates.py
    mined.jsonl          rows with their negatives and scores; mined.json says by which
                         rules

Each step finds what an earlier call has done, after a kill at any moment too.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxembed import corpus, search, store
from jaxembed.embedder import Embedder
from jaxembed.files import place, whole_file, whole_json
from jaxembed.files.alone import alone
from jaxembed.mining import candidates, collection, report, select
from jaxembed.mining.rules import Rules

ROWS = 'mined.jsonl'
DTYPES = ('float32', 'float16', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Prompts:
  """What stands in front of queries and documents: texts, or names of the model's."""

  query: str | None = None
  document: str | None = None
  query_name: str | None = None
  document_name: str | None = None


def encode(texts: collection.Collection, embedder: Embedder, teacher: str, *,
           prompts: Prompts = Prompts(), dtype: str = 'float32', batch_size: int = 32,
           part: int = 16384) -> tuple[store.VectorStore, store.VectorStore]:
  """Vectors of (queries, documents) of a run by one model, on the disk once.

  Of length 1 where the model's similarity is cosine. Without prompts, the model's own
  called query and document, as in Embedder.encode_query.

  Raises:
    ValueError: the folder has vectors of this teacher by another model or prompt.
  """
  candidates.check_name(teacher)
  return encode_into(texts, embedder, texts.folder / 'vectors' / teacher, prompts,
                     dtype=dtype, batch_size=batch_size, part=part)


def encode_into(texts: collection.Collection, embedder: Embedder, folder: pathlib.Path,
                prompts: Prompts = Prompts(), *, dtype: str = 'float32',
                batch_size: int = 32, part: int = 16384
                ) -> tuple[store.VectorStore, store.VectorStore]:
  """`encode`, into a folder of the caller's choice."""
  settings: dict[str, Any] = {
      'batch_size': batch_size, 'dtype': dtype, 'part': part, 'reuse': True,
      'normalize': embedder.similarity_fn_name == 'cosine'}
  found: list[Any] = [corpus.encode_file(
      embedder, texts.folder / f'{name}.jsonl', folder / name, prompt=prompt,
      prompt_name=None if prompt is not None else by_name or own, id_field='',
      **settings)
      for name, prompt, by_name, own in (
          ('queries', prompts.query, prompts.query_name, 'query'),
          ('documents', prompts.document, prompts.document_name, 'document'))]
  return found[0], found[1]


def mine(texts: collection.Collection, embedders: Mapping[str, Callable[[], Embedder]],
         *, depth: int = 100, prompts: Mapping[str, Prompts] | None = None,
         memory: int = search.MEMORY, **settings: Any) -> candidates.Table:
  """The candidate table of a run: the first teacher searches, all of them score.

  Args:
    embedders: by a teacher's name, a function that opens its model, which is called
      when its turn comes.
    depth: candidates of each query, positives among them.
    prompts: by teacher.
    settings: of `encode`.
  """
  prompts = prompts or {}
  with alone(texts.folder / 'mining.lock', f'run {texts.folder}',
             'choose another folder'):
    for number, (teacher, opened) in enumerate(embedders.items()):
      embedder = opened()
      queries, documents = encode(texts, embedder, teacher,
                                  prompts=prompts.get(teacher, Prompts()), **settings)
      if number:
        candidates.score(texts, teacher, queries, documents,
                         embedder.similarity_fn_name)
      else:
        candidates.find(texts, teacher, queries, documents, depth,
                        embedder.similarity_fn_name, mesh=embedder.mesh, memory=memory)
  return candidates.Table.load(texts)


@place.remote(writes=('target',))
def write_rows(texts: collection.Collection, table: candidates.Table, rules: Rules,
               target: str | os.PathLike | None = None, *, written: str = '',
               overwrite: bool = False, say: Callable[[str], None] = lambda _: None
               ) -> select.Account:
  """Writes a row per query that every reader of rows takes, and what rules did.

  {"query", "pos": [...], "neg": [...], "pos_scores": [...], "neg_scores": [...]} with
  the query's own query_id and instruction; negatives are those of the best score first.

  Args:
    target: the .jsonl file; None: mined.jsonl of the run, which rows='mined' reads.
    written: the teacher whose scores are written; '': the one that the rules ask.
    overwrite: replace rows that other rules made.

  Raises:
    FileExistsError: the file is there.
  """
  target = texts.folder / ROWS if target is None else pathlib.Path(target)
  record = target.with_suffix('.json')
  made = {'rules': dataclasses.asdict(rules), 'teacher': table.teacher,
          'written': written, 'texts': texts.source}
  same = record.exists() and json.loads(record.read_bytes()).get('made') == made
  if target.exists() and not overwrite and not same:
    raise FileExistsError(f'{target} exists, made by other rules; overwrite it, or '
                          'give another file')
  account, digest = select.Account(), hashlib.blake2b(digest_size=16)
  target.parent.mkdir(parents=True, exist_ok=True)
  with alone(target.with_name(target.name + '.lock'), f'target {target}',
             'choose another file'):
    with whole_file.opened(target, 'wb') as file:
      for found in select.select(texts, table, rules, account, written):
        line = json.dumps(_row(texts, found), ensure_ascii=False).encode() + b'\n'
        digest.update(line)
        file.write(line)
      file.flush()
      os.fsync(file.fileno())
      record.unlink(missing_ok=True)
    whole_json.write(record, {
        'made': made, 'blake2b': digest.hexdigest(), 'rejected': account.rejected,
        'kept': account.kept, 'taken': account.taken, 'short': account.short})
  for line in report.lines(account, rules, texts):
    say(line)
  return account


def _row(texts: collection.Collection, found: select.Selected) -> dict[str, Any]:
  query, _ = texts.queries[found.query]
  more = {name: query[name] for name in ('query_id', 'instruction') if name in query}
  return {'query': query['text'],
          'pos': list(collection.texts(texts.documents,
                                       texts.positives_of(found.query))),
          'neg': list(collection.texts(texts.documents, found.negatives)),
          'pos_scores': _numbers(found.positive_scores),
          'neg_scores': _numbers(found.scores), **more}


def _numbers(scores: np.ndarray) -> list[float]:
  """float32 in the shortest digits that are read back as the same."""
  return [float(str(score)) for score in scores]
