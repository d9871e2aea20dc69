"""Writer of plain Hugging Face folders: a backbone and its tokenizer, nothing behind.

AutoModel and AutoTokenizer open them. How token states become a vector is not in such
a folder, so a model whose head has weights cannot be written as one.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from jaxembed.bundle import Bundle
from jaxembed.convert import parity, tables, to_sentence_transformers
from jaxembed.data import tokenise
from jaxembed.models import encoder
from jaxembed.pooling import heads

# As convert.parity_families: of states, relative to the largest of them.
TOLERANCE = 2e-5


def write(folder: pathlib.Path, model: Bundle) -> None:
  """Writes config.json, weights and tokenizer into the new `folder`.

  Raises:
    ValueError: a head or dense layers with weights, which would be lost; texts in a
      form that the tokenizer's files cannot say.
    FileNotFoundError: the model has no tokenizer.
  """
  if not tables.in_transformers(model.cfg.backbone):
    raise ValueError(f'transformers has no {model.cfg.backbone.family} model; write '
                     'sentence-transformers')
  lost = [what for what, there in (
      (f'{model.cfg.pooling.kind} pooling', heads.has_parameters(model.cfg.pooling)),
      ('dense layers', bool(model.cfg.dense)),
      ('lower_case', model.cfg.lower_case)) if there]
  if lost:
    raise ValueError('a plain Hugging Face folder has no place for '
                     f'{" and ".join(lost)}; write sentence-transformers')
  to_sentence_transformers.write_backbone(folder, model)
  to_sentence_transformers.write_tokenizer(folder, model)


def expected(folder: pathlib.Path, model: Bundle
             ) -> tuple[tokenise.Ragged, list[np.ndarray], int]:
  """Tokens of the probes, the model's states of each (padded right), the padding id."""
  tokenizer = tokenise.Tokenizer.for_model(folder, dataclasses.replace(
      model.cfg, prompt_pooling='include', eos_text=''))
  ragged = tokenizer.encode(parity.PROBES, max_length=model.cfg.max_length,
                            keep_empty=True)
  ragged = ragged.take(np.flatnonzero(ragged.lengths))
  tokens = tokenizer.pad(ragged, int(ragged.lengths.max()))
  cfg = dataclasses.replace(model.cfg, dtype='float32', precision='highest',
                            remat='none')
  states = jax.jit(encoder.hidden_states, static_argnums=1)(model.params, cfg, tokens)
  return ragged, [x[m] for x, m in zip(np.asarray(states), tokens.mask)], (
      tokenizer.pad_id)


def check(folder: pathlib.Path, model: Bundle, found: Any) -> dict[str, Any]:
  """Opens `folder` with transformers and compares token states with `found`.

  Raises:
    parity.Mismatch: torch computes others.
  """
  import torch
  import transformers

  ragged, states, pad_id = found
  theirs = transformers.AutoModel.from_pretrained(
      folder, dtype=torch.float32, trust_remote_code=False,
      local_files_only=True).eval()
  tokens = tokenise.pad(ragged, int(ragged.lengths.max()), pad_id=pad_id)
  with torch.no_grad():
    out = theirs(input_ids=torch.from_numpy(tokens.ids.astype(np.int64)),
                 attention_mask=torch.from_numpy(tokens.mask.astype(np.int64)))
  largest = max(float(np.abs(x).max()) for x in states)
  worst = max(float(np.abs(np.asarray(y)[m] - x).max()) for x, y, m in zip(
      states, out.last_hidden_state, tokens.mask)) / largest
  if not worst <= TOLERANCE:
    raise parity.Mismatch(f"transformers' token states differ by {worst:.3g} of the "
                          f'largest (allowed: {TOLERANCE:g}); the export was discarded')
  pooling = ' beside '.join(h.words for h in heads.of(model.cfg.pooling))
  return {'max_difference': worst, 'tolerance': TOLERANCE,
          'versions': parity.versions() | {'jax': jax.__version__},
          'told': f"transformers computes the same token states (largest difference "
          f'{worst:.1e} of the largest state); how they become a vector is not in '
          f'such a folder: {pooling}'
          f'{", then length 1" if model.cfg.normalize else ""}'}
