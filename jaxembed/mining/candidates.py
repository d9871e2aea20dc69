"""Candidate table: for every query its nearest documents and a score per teacher.

    candidates/found.npy      [Q,K] of (row int32, score float32): documents, nearest
                              first, by the teacher that searched
    candidates/near.npy       [Q,K] float32, cosine of each to the nearest positive of
                              its query
    candidates/scores-TEACHER.npy      [Q,K] float32, of each by this teacher
    candidates/positives-TEACHER.npy   [P] float32, of the positives

Each file is written in parts and continued after a kill (files/vector_file.py); beside
it lies what it was made of. Rules read the table; nothing is encoded or searched for
them again.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

from jaxembed import search, similarity
from jaxembed.files.vector_file import VectorFile, refuse_other
from jaxembed.mining.collection import Collection
from jaxembed.store import VectorStore

_QUERIES = 4096  # searched between two notes of progress
_GATHERED = 1 << 27  # bytes of vectors gathered at a time
# Of a query with more positives, the first so many say what is near a positive.
_POSITIVES = 32
_NAME = re.compile(r'[A-Za-z0-9][\w.-]*')
_FOUND = np.dtype([('row', '<i4'), ('score', '<f4')])


@dataclasses.dataclass(frozen=True)
class Table:
  """An opened table, memory-mapped.

  Attributes:
    teacher: the one that searched.
    rows [Q,K]: documents, nearest first by that teacher.
    near [Q,K]: cosine of each to the query's nearest positive.
    scores, positives: by teacher, [Q,K] of the candidates and [P] of the positives.
  """

  teacher: str
  rows: np.ndarray
  near: np.ndarray
  scores: Mapping[str, np.ndarray]
  positives: Mapping[str, np.ndarray]

  @classmethod
  def load(cls, texts: Collection) -> 'Table':
    """The table of a mining run.

    Raises:
      FileNotFoundError: nothing was searched yet.
    """
    folder, teacher = texts.folder / 'candidates', searched_by(texts.folder)
    found = np.load(folder / 'found.npy', mmap_mode='r')
    scores = {teacher: found['score']} | {
        file.stem.removeprefix('scores-'): np.load(file, mmap_mode='r')
        for file in sorted(folder.glob('scores-*.npy'))}
    return cls(teacher, found['row'], np.load(folder / 'near.npy', mmap_mode='r'),
               scores, {name: np.load(folder / f'positives-{name}.npy', mmap_mode='r')
                        for name in scores})


def searched_by(folder: pathlib.Path) -> str:
  """The teacher that found the candidates of the mining run in `folder`.

  Raises:
    FileNotFoundError: nothing was searched yet.
  """
  folder = folder / 'candidates'
  if not (folder / 'found.npy').is_file() or not (folder / 'near.npy').is_file():
    raise FileNotFoundError(f'{folder} holds no candidates yet; give a --model that '
                            'finds them')
  return json.loads((folder / 'found.sums.json').read_bytes())['work']['teacher']


def find(texts: Collection, teacher: str, queries: VectorStore, documents: VectorStore,
         depth: int, function: str, *, mesh: jax.sharding.Mesh | None = None,
         memory: int = search.MEMORY) -> None:
  """Searches the `depth` nearest documents of every query, and scores them.

  What is on the disk is not computed again.

  Args:
    teacher: a name for the vectors, and for the files.
    queries, documents: vectors of all texts, of length 1 where `function` is cosine.
    function: a similarity function (jaxembed/similarity.py).

  Raises:
    ValueError: the table is of another depth or of other vectors.
  """
  check_name(teacher)
  folder = texts.folder / 'candidates'
  depth = min(depth, len(documents))
  work = _work(queries, documents, function) | {'depth': depth}
  count = len(texts.queries)

  def nearest(first: int, last: int) -> np.ndarray:
    scores, rows = search.top_k(queries[first:last], documents, depth, mesh=mesh,
                                memory=memory, similarity=function)
    both = np.empty(rows.shape, _FOUND)
    both['row'], both['score'] = rows, scores
    return both

  _write(folder / 'found.npy', work | {'teacher': teacher}, (count, depth), _FOUND,
         nearest, _QUERIES)
  rows = np.load(folder / 'found.npy', mmap_mode='r')['row']
  _write(folder / 'near.npy', work, (count, depth), np.dtype('<f4'),
         lambda a, b: _near(texts, documents, rows[a:b], a, b),
         _step(documents.width, depth))
  _positives(texts, teacher, queries, documents, function, work)


def score(texts: Collection, teacher: str, queries: VectorStore,
          documents: VectorStore, function: str) -> None:
  """Scores the candidates that another teacher found, by this one's vectors."""
  check_name(teacher)
  rows = Table.load(texts).rows
  work = _work(queries, documents, function)

  def scored(first: int, last: int) -> np.ndarray:
    part = rows[first:last]
    return _pair_scores(
        function, np.repeat(queries[first:last], part.shape[1], 0),
        documents.rows(part.ravel())).reshape(part.shape)

  _write(texts.folder / 'candidates' / f'scores-{teacher}.npy', work, rows.shape,
         np.dtype('<f4'), scored, _step(documents.width, rows.shape[1]))
  _positives(texts, teacher, queries, documents, function, work)


def check_name(teacher: str) -> None:
  """Raises ValueError unless a teacher can be called so: files are."""
  if not _NAME.fullmatch(teacher):
    raise ValueError(f'teacher {teacher!r}: a name is letters, digits, - . and _')


def _positives(texts: Collection, teacher: str, queries: VectorStore,
               documents: VectorStore, function: str, work: dict[str, Any]) -> None:
  """The scores of every query's positives."""
  asked = np.repeat(np.arange(len(texts.queries)), np.diff(texts.offsets))

  def scored(first: int, last: int) -> np.ndarray:
    return _pair_scores(function, queries.rows(asked[first:last]),
                        documents.rows(texts.positives[first:last]))

  _write(texts.folder / 'candidates' / f'positives-{teacher}.npy', work,
         (len(texts.positives),), np.dtype('<f4'), scored,
         _step(documents.width, 2))


def _work(queries: VectorStore, documents: VectorStore, function: str
          ) -> dict[str, Any]:
  return {'queries': queries.work, 'documents': documents.work,
          'similarity': function}


def _step(width: int, each: int) -> int:
  """Rows at a time whose vectors, `each` of them a row, fit into _GATHERED."""
  return max(_GATHERED // (4 * width * each), 1)


def _write(target: pathlib.Path, work: dict[str, Any], shape: tuple[int, ...],
           dtype: np.dtype, compute: Callable[[int, int], np.ndarray], step: int
           ) -> None:
  """Fills an array in parts of `step` rows, from where it was left."""
  told = target.with_suffix('.sums.json')
  if target.exists():
    if (made := json.loads(told.read_bytes())['work']) != work:
      refuse_other(f'{target} holds scores', made, work)
    return
  file = VectorFile(target, work, shape, dtype)
  file.open(overwrite=False)
  while file.done < shape[0]:
    file.append(compute(file.done, min(file.done + step, shape[0])))
  file.finish(told)


def _pair_scores(function: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Similarity row by row; cosine of vectors of length 1 is their product."""
  if function in ('dot', 'cosine'):
    return np.einsum('CE,CE->C', a, b)
  return similarity.pairwise(function, a, b)


def _near(texts: Collection, documents: VectorStore, rows: np.ndarray, first: int,
          last: int) -> np.ndarray:
  """Cosine of every candidate to the nearest of its query's positives.  [q,K]."""
  found = np.full(rows.shape, -1, np.float32)
  vectors = similarity.unit(documents.rows(rows.ravel())).reshape(*rows.shape, -1)
  offsets = texts.offsets[first:last + 1]
  counts = np.diff(offsets)
  for n in range(min(int(counts.max()), _POSITIVES)):
    have = np.flatnonzero(counts > n)
    own = similarity.unit(documents.rows(texts.positives[offsets[have] + n]))
    near = np.matmul(vectors[have], own[:, :, None])[..., 0]
    found[have] = np.maximum(found[have], near)
  return found
