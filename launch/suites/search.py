"""Search over 1,000,000 vectors of 384 on disk beside faiss-cpu and numpy.

Vectors are clustered as texts' are: 2,000 centres and noise, of length 1. The store is
read from disk as it is searched; faiss holds its flat index in memory. Both run in
this process, on the same cores, alternating; the peak of this process' memory is that
before faiss gets the vectors. Recall is that of numpy's ranking by float32.
"""

from collections.abc import Callable
import pathlib
import resource
import statistics
import tempfile
import time

import faiss
import numpy as np

from jaxembed import search, store
from jaxembed.store import codes

_K = 10
_NOISE = 1.2
_OVERSAMPLE = {'int8': 4, 'binary': 10}


def run(repeats: int, small: bool) -> list[dict]:
  """A row per way to search."""
  count, width, asked = (20_000, 64, 50) if small else (1_000_000, 384, 1_000)
  with tempfile.TemporaryDirectory() as folder:
    stores, queries = _stores(pathlib.Path(folder), count, width, asked)
    return _measured(stores, queries, repeats)


def _measured(stores: dict[str, store.VectorStore], queries: np.ndarray,
              repeats: int) -> list[dict]:
  exact = stores['float32']
  ways = {'float32': lambda: search.top_k(queries, exact, _K)}
  for dtype, times in _OVERSAMPLE.items():
    for name, by in ((dtype, None), (f'{dtype}, rescored by float32', exact)):
      ways[name] = lambda dtype=dtype, times=times, by=by: search.quantized_top_k(
          queries, stores[dtype], _K, oversample=times, rescore=by)
  found = {name: way()[1] for name, way in ways.items()}
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  vectors = exact[:]
  wanted = _numpy(queries, vectors)
  index = faiss.IndexFlatIP(exact.width)
  index.add(vectors)
  ways['faiss flat'] = lambda: index.search(queries, _K)
  found['faiss flat'] = index.search(queries, _K)[1]
  seconds = {name: [] for name in ways}
  for _ in range(repeats):
    for name, way in ways.items():
      seconds[name].append(_timed(way))
  peer = statistics.median(seconds['faiss flat'])
  return [{
      'search': name, 'seconds': statistics.median(times),
      'queries /s': len(queries) / statistics.median(times),
      'faiss / this': peer / statistics.median(times),
      f'recall@{_K}': _recall(found[name], wanted),
      'rows in order': float((found[name] == wanted).all(1).mean()),
      'MiB read': stores[name.split(',')[0]].nbytes / 2**20 if name[:5] != 'faiss'
                  else float('nan'),
      'GiB at most': peak if name[:5] != 'faiss' else float('nan'),
  } for name, times in seconds.items()]


def _stores(folder: pathlib.Path, count: int, width: int, asked: int):
  """The vectors in every type that is searched, and queries."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(2000, width)).astype(np.float32)

  def draw(n: int) -> np.ndarray:
    x = centres[rng.integers(0, len(centres), n)]
    x = x + _NOISE * rng.standard_normal(x.shape, dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  dtypes = ('float32', *_OVERSAMPLE)
  writers = [store.Writer(folder / dtype, {}, count, width, dtype, shard_rows=count)
             for dtype in dtypes]
  for writer in writers:
    writer.__enter__()
  shards = [next(writer.shards()) for writer in writers]
  while (left := count - shards[0].done):
    part = draw(min(left, 50_000))
    for shard, dtype in zip(shards, dtypes):
      shard.append(codes.encode(part, dtype))
  for writer, shard in zip(writers, shards):
    shard.finish()
    writer.finish()
    writer.__exit__()
  return {dtype: store.open(folder / dtype) for dtype in dtypes}, draw(asked)


def _numpy(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
  """The rows of a full sort, a hundred queries at a time."""
  found = []
  for start in range(0, len(queries), 100):
    scores = queries[start:start + 100] @ vectors.T
    near = np.sort(np.argpartition(-scores, _K, axis=1)[:, :_K], axis=1)
    order = np.argsort(-np.take_along_axis(scores, near, 1), axis=1, kind='stable')
    found.append(np.take_along_axis(near, order, 1))
  return np.concatenate(found)


def _recall(found: np.ndarray, wanted: np.ndarray) -> float:
  return float(np.mean([len(set(a) & set(b)) / _K
                        for a, b in zip(found.tolist(), wanted.tolist())]))


def _timed(way: Callable) -> float:
  begun = time.perf_counter()
  way()
  return time.perf_counter() - begun
