"""Random rows of a file in a process that has nothing else: `rows` starts it.

  python -m launch.suites._random_rows jsonl|datasets FILE

It imports what reading rows needs, so that its memory is that of a reader alone.
"""

import importlib
import json
import pathlib
import sys
import time

import numpy as np

from jaxembed import data
from jaxembed.config import SourceConfig

from . import _resident

_READS = 50_000


def source(file: pathlib.Path) -> SourceConfig:
  """The file as a source whose index is kept beside it."""
  return SourceConfig(name='rows', path=str(file), cache_dir=str(file.parent / 'cache'))


def _measure(kind: str, file: str) -> dict:
  """Seconds to open, rows per second at random, and MiB."""
  path, begun = pathlib.Path(file), time.perf_counter()
  if kind == 'datasets':
    datasets = importlib.import_module('datasets')
    rows = datasets.load_dataset('json', data_files=file, split='train',
                                 cache_dir=str(path.parent / 'datasets'))
  else:
    rows = data.load(source(path))
  opened = time.perf_counter() - begun
  places = np.random.default_rng(1).integers(len(rows), size=_READS).tolist()
  begun, used = time.perf_counter(), time.process_time()
  for i in places:
    rows[i]
  return {'what': f'{kind}, random rows', 'seconds': opened,
          'rows/s': _READS / (time.perf_counter() - begun),
          'rows per processor second': _READS / (time.process_time() - used),
          'resident MB': _resident.of('VmRSS') / 1e6}


if __name__ == '__main__':
  print(json.dumps(_measure(*sys.argv[1:])))
