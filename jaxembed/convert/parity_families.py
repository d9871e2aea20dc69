"""Parity report: every supported family against PyTorch, on small random checkpoints.

`report` builds each checkpoint with transformers, loads it on both sides, and
compares the last hidden states of ragged batches: both padding sides, causal and
bidirectional. The figures are the proof that a family is supported.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import tempfile

import jax
import numpy as np

from jaxembed.convert import from_hf, tables
from jaxembed.convert.families import FAMILIES
from jaxembed.models import encoder
from jaxembed.types import Tokens

# Largest |ours - torch| over the largest |torch|. Both sides are float32; three
# random layers leave a few ulp (6e-8) times the depth of the sums.
TOLERANCE = 2e-5

# (name in the report, model_type, fields of transformers' own configuration)
CASES = tuple((name, model_type, dict(fields))
              for model_type, family in FAMILIES.items()
              for name, fields in family.cases.items())


@dataclasses.dataclass(frozen=True)
class Line:
  """One comparison: relative difference of the last hidden states."""

  name: str
  attention: str
  padding: str
  difference: float


def report() -> Iterator[Line]:
  """Compares every case; yields as it goes. Takes about a minute on a laptop."""
  for name, model_type, fields in CASES:
    with tempfile.TemporaryDirectory() as folder:
      build(pathlib.Path(folder), model_type, fields)
      yield from compare(name, pathlib.Path(folder))


def build(folder: pathlib.Path, model_type: str, fields: dict, seed: int = 0) -> None:
  """Saves a random torch checkpoint; no parameter is left at 0 or 1."""
  import torch
  import transformers

  torch.manual_seed(seed)
  config = transformers.AutoConfig.for_model(model_type, **fields)
  model = getattr(transformers, FAMILIES[model_type].architecture)(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.1)
  model.save_pretrained(folder)


def compare(name: str, folder: pathlib.Path) -> Iterator[Line]:
  """Both padding sides, every attention mode that torch has."""
  loaded = from_hf.load(folder)
  modes = ['bidirectional']
  if tables.is_decoder(loaded.cfg.backbone):
    modes = ([] if loaded.cfg.attention == 'bidirectional' else ['causal']) + modes
  for mode in modes:
    model = _torch_model(folder, mode)
    for padding in ('right', 'left'):
      tokens = ragged(loaded.cfg.backbone.vocab_size, padding)
      theirs = _torch_states(model, tokens)
      ours = np.asarray(jax.jit(
          encoder.hidden_states, static_argnums=1, static_argnames='attention')(
              loaded.params, loaded.cfg, tokens, attention=mode))
      mask = np.asarray(tokens.mask)
      difference = np.abs(ours - theirs)[mask].max() / np.abs(theirs[mask]).max()
      yield Line(name, mode, padding, float(difference))


def ragged(vocab: int, padding: str, rows: int = 5, length: int = 24) -> Tokens:
  """Random texts of 1 to `length` tokens; padding has id 0 or, for the RoBERTas,
  1, so text uses neither."""
  rng = np.random.default_rng(0)
  ids = rng.integers(2, vocab, (rows, length)).astype(np.int32)
  count = rng.integers(1, length, (rows, 1))
  count[0], count[1] = length, 1
  column = np.arange(length)[None]
  mask = column < count if padding == 'right' else column >= length - count
  return Tokens(ids=np.where(mask, ids, 1).astype(np.int32), mask=mask, pool=mask)


def _torch_model(folder: pathlib.Path, mode: str):
  import transformers

  config = transformers.AutoConfig.from_pretrained(folder)
  kind = getattr(transformers, FAMILIES[config.model_type].architecture)
  model = kind.from_pretrained(folder, attn_implementation='eager').eval()
  if mode == 'bidirectional' and not getattr(
      model.config, 'use_bidirectional_attention', False):
    model.config.is_causal = False
  return model


def _torch_states(model, tokens: Tokens) -> np.ndarray:
  import torch

  with torch.no_grad():
    return model(
        input_ids=torch.from_numpy(np.asarray(tokens.ids)).long(),
        attention_mask=torch.from_numpy(np.asarray(tokens.mask)).long(),
    ).last_hidden_state.numpy()
