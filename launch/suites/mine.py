"""Mining from 1,000,000 vectors of 384 on disk: seconds of each step, peak of memory.

Vectors stand in the place of a model's, clustered as in the suite `search`; queries lie
in the clusters of their answers. What is measured is all but encoding: search of 100
candidates, their cosines to the positives, and rows written by the default rules, then
by another rule.
"""

import pathlib
import resource
import tempfile
import time

import numpy as np

from jaxembed import store
from jaxembed.data.records import Example, Passage
from jaxembed.mining import candidates, collection, miner
from jaxembed.mining.rules import Rules
from jaxembed.store import codes

_DEPTH = 100


def run(repeats: int, small: bool) -> list[dict]:
  """A row per step; one run, as it is of minutes."""
  del repeats
  count, width, asked = (5_000, 32, 200) if small else (1_000_000, 384, 10_000)
  with tempfile.TemporaryDirectory() as folder:
    return _measured(pathlib.Path(folder), count, width, asked)


def _measured(folder: pathlib.Path, count: int, width: int, asked: int) -> list[dict]:
  rows = []

  def step(name: str, do):
    begun = time.perf_counter()
    found = do()
    seconds = time.perf_counter() - begun
    rows.append({'step': name, 'seconds': seconds, 'queries /s': asked / seconds,
                 'GiB at most': resource.getrusage(
                     resource.RUSAGE_SELF).ru_maxrss / 2**20})
    return found

  examples = (Example(f'query {i}', (Passage(f'document {i}'),)) for i in range(asked))
  texts = step('texts collected', lambda: collection.collect(
      folder / 'run', examples, (f'document {i}' for i in range(count)), {}))
  documents, queries = _vectors(folder, count, width, asked)
  step(f'search of {_DEPTH}, and cosines to positives', lambda: candidates.find(
      texts, 'vectors', queries, documents, _DEPTH, 'dot'))
  table = candidates.Table.load(texts)
  step('rows by the default rules', lambda: miner.write_rows(texts, table, Rules()))
  step('rows by another rule', lambda: miner.write_rows(
      texts, table, Rules(margin=0.05, take='sample'), overwrite=True))
  return rows


def _vectors(folder: pathlib.Path, count: int, width: int, asked: int):
  """(documents, queries), a query for each of the first documents."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(2000, width)).astype(np.float32)
  found = []
  for name, rows in (('documents', count), ('queries', asked)):
    with store.Writer(folder / name, {'name': name}, rows, width) as writer:
      for shard in writer.shards():
        while shard.done < shard.rows:
          first = shard.first + shard.done
          part = np.arange(first, first + min(50_000, shard.rows - shard.done))
          x = centres[part * 7919 % 2000] + 1.2 * rng.standard_normal(
              (len(part), width), dtype=np.float32)
          shard.append(codes.encode(
              x / np.linalg.norm(x, axis=1, keepdims=True), 'float32'))
        shard.finish()
      writer.finish()
    found.append(store.open(folder / name))
  return found
