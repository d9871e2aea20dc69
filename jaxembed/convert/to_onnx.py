"""ONNX export of an exported sentence-transformers folder, and its check.

onnx/model.onnx takes what a tokenizer gives and has two outputs: last_hidden_state,
which backend='onnx' of sentence-transformers reads, and sentence_embedding, the whole
pipeline (transformer, pooling, dense layers, normalisation) for onnxruntime alone.
"""

from collections.abc import Sequence
import importlib.metadata
import logging
import pathlib
from typing import Any
import warnings

import numpy as np

from jaxembed.bundle import Bundle
from jaxembed.convert import parity, tables, to_sentence_transformers
from jaxembed.files import checked_json

FILE = 'onnx/model.onnx'
INT8 = 'onnx/model_int8.onnx'
# Of two unit vectors: another library's kernels, and attention of another form.
TOLERANCE = 1e-4
# Weights beyond this go into a file beside the graph: protobuf holds 2 GB.
_INLINE_BYTES = 1_500_000_000
_INPUTS = ('input_ids', 'attention_mask', 'token_type_ids')
_OUTPUTS = ('last_hidden_state', 'sentence_embedding')


def write(folder: pathlib.Path, model: Bundle, int8: bool = False) -> None:
  """Writes the sentence-transformers layout into the new `folder`, and its graph.

  int8: also a copy whose matrices are 8-bit, products quantised as they come.

  Raises:
    ImportError: torch, onnx, onnxscript or onnxruntime is not installed.
    ValueError: a model that the layout or the exporter cannot hold.
  """
  if type(int8) is not bool:
    raise ValueError(f'int8 is {int8!r}; it is True or False')
  _check_installed()
  if not tables.in_transformers(model.cfg.backbone):
    raise ValueError(f'no graph is made of a {model.cfg.backbone.family} model, which '
                     'transformers does not have; write sentence-transformers')
  if model.cfg.prepend is not None:
    raise ValueError('a prepended token moves states between layers by hooks, which '
                     'no graph records; write sentence-transformers')
  to_sentence_transformers.write(folder, model)
  file = folder / 'sentence_bert_config.json'
  settings = checked_json.read(file)
  settings.pop('model_args', None)  # of torch's classes; optimum's take none of them
  to_sentence_transformers.write_json(file, settings)
  graph(folder)
  if int8:
    _quantize(folder)


def graph(folder: pathlib.Path) -> None:
  """Writes onnx/model.onnx of the sentence-transformers model in `folder`."""
  import torch

  theirs = parity.torch_model(folder)
  names = [n for n in theirs.tokenizer.model_input_names
           if n in _INPUTS]

  class Pipeline(torch.nn.Module):
    """The modules of a model, one after another, on named tensors."""

    def __init__(self):
      super().__init__()
      self.parts = torch.nn.ModuleList(theirs)

    def forward(self, *tensors):
      features = dict(zip(names, tensors))
      for part in self.parts:
        features = part(features)
      return features['token_embeddings'], features['sentence_embedding']

  sample = theirs.tokenizer(['a text', 'another, longer text'], padding=True,
                            return_tensors='pt')
  rows, width = torch.export.Dim('batch'), torch.export.Dim('sequence')
  (folder / FILE).parent.mkdir()
  size = sum(p.numel() * p.element_size() for p in theirs.parameters())
  with warnings.catch_warnings(), torch.no_grad():
    warnings.simplefilter('ignore')  # of torch's own exporter
    torch.onnx.export(
        Pipeline().eval(), tuple(sample[n] for n in names), folder / FILE,
        input_names=names, output_names=list(_OUTPUTS), dynamo=True, verbose=False,
        external_data=size > _INLINE_BYTES,
        dynamic_shapes=(tuple({0: rows, 1: width} for _ in names),))


def check(folder: pathlib.Path, model: Bundle, cases: list[parity.Case]
          ) -> dict[str, Any]:
  """Compares the folder in torch, then its graph in onnxruntime.

  Raises:
    parity.Mismatch: onnxruntime computes other vectors than torch.
  """
  report = to_sentence_transformers.check(folder, model, cases)
  theirs = parity.torch_model(folder)
  worst = compare(folder, theirs, parity.PROBES)
  if not worst <= TOLERANCE:
    raise parity.Mismatch(
        f'onnxruntime and torch differ by {worst:.3g} (allowed: {TOLERANCE:g}); the '
        'export was discarded')
  report['onnx'] = {'max_difference': worst, 'tolerance': TOLERANCE, 'versions': {
      name: importlib.metadata.version(name) for name in ('onnx', 'onnxruntime')}}
  told = f'{report["told"]}; onnxruntime differs by at most {worst:.1e}'
  if (folder / INT8).is_file():
    cosine = _least_cosine(folder, theirs)
    report['onnx']['int8_least_cosine'] = cosine
    told += f', its int8 form has cosines of at least {cosine:.4f} with it'
  if model.cfg.prompt_pooling != 'include':
    told += ("; the graph's own vector counts the tokens of prompts, which "
             'sentence-transformers leaves out')
  return report | {'told': told}


def compare(folder: pathlib.Path, theirs: Any, texts: Sequence[str], file: str = FILE
            ) -> float:
  """The largest difference of unit vectors in onnxruntime and in torch."""
  worst = 0.0
  for a, b in _pairs(folder, theirs, texts, file):
    difference = np.abs(a - b).max()
    worst = max(worst, float(np.inf if np.isnan(difference) else difference))
  return worst


def _least_cosine(folder, theirs) -> float:
  return min(float((a * b).sum(-1).min())
             for a, b in _pairs(folder, theirs, parity.PROBES, INT8))


def _pairs(folder, theirs, texts, file, size: int = 16):
  """Unit vectors of both, batch by batch; texts without a token are left out."""
  session = open_session(folder / file)
  for side in ('right', 'left'):
    theirs.tokenizer.padding_side = side
    for at in range(0, len(texts), size):
      batch = list(texts[at:at + size])
      tokens = tokenized(theirs, batch)
      there = tokens['attention_mask'].any(1)
      ours = run(session, tokens)[1][there]
      want = theirs.encode(batch, batch_size=size, show_progress_bar=False, prompt='')
      yield parity.unit(ours), parity.unit(np.asarray(want)[there])


def open_session(file: pathlib.Path, threads: int = 0) -> Any:
  """An onnxruntime session on the CPU; threads 0: its own choice."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  options.log_severity_level = 3
  return onnxruntime.InferenceSession(file, options,
                                      providers=['CPUExecutionProvider'])


def tokenized(theirs: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
  """Inputs of the graph, as sentence-transformers makes them of texts."""
  make = getattr(theirs, 'preprocess', None) or theirs.tokenize
  return {k: v.numpy() for k, v in make(list(texts)).items()
          if k in _INPUTS}


def run(session: Any, tokens: dict[str, np.ndarray]) -> list[np.ndarray]:
  """Token states [B,T,D] and vectors [B,E]."""
  wanted = {x.name for x in session.get_inputs()}
  return session.run(list(_OUTPUTS), {k: v for k, v in tokens.items() if k in wanted})


def _quantize(folder: pathlib.Path) -> None:
  from onnxruntime import quantization

  log = logging.getLogger()  # of the root, on which onnxruntime advises
  level = log.level
  log.setLevel(logging.ERROR)
  try:
    quantization.quantize_dynamic(
        folder / FILE, folder / INT8, weight_type=quantization.QuantType.QInt8,
        per_channel=True,  # MiniLM: cosines of 0.994 with it, of 0.969 without
        use_external_data_format=(folder / FILE).stat().st_size > _INLINE_BYTES)
  finally:
    log.setLevel(level)


def _check_installed() -> None:
  try:
    import onnx
    import onnxruntime
    import onnxscript
  except ImportError as e:
    raise ImportError(f'the format onnx needs {e.name}, which is not here: pip install '
                      "'jaxembed[onnx,torch]'") from e
  del onnx, onnxruntime, onnxscript
