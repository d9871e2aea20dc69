"""Every supported family against PyTorch, on random small checkpoints.

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
from jaxembed.models import encoder
from jaxembed.types import Tokens

# Largest |ours - torch| over the largest |torch|. Both sides are float32; three
# random layers leave a few ulp (6e-8) times the depth of the sums.
TOLERANCE = 2e-5

_SMALL = {'vocab_size': 99, 'hidden_size': 32, 'intermediate_size': 48,
          'num_hidden_layers': 3, 'num_attention_heads': 4,
          'max_position_embeddings': 64}
_GQA = _SMALL | {'num_key_value_heads': 2, 'pad_token_id': 0}
_HEAD = _GQA | {'head_dim': 16}
_LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 500000.0, 'factor': 8.0,
           'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
           'original_max_position_embeddings': 16}
_YARN = {'rope_type': 'yarn', 'rope_theta': 10000.0, 'factor': 4.0,
         'original_max_position_embeddings': 16}
_LONGROPE = {'rope_type': 'longrope', 'rope_theta': 10000.0,
             'short_factor': [1.0, 1.1, 1.2, 1.4], 'long_factor': [1.0, 2.0, 3.0, 5.0],
             'original_max_position_embeddings': 32}
_SLIDING = ['sliding_attention', 'full_attention', 'sliding_attention']

# (name in the report, model_type, fields of transformers' own configuration)
CASES = (
    ('Mistral', 'mistral', _GQA | {'sliding_window': None}),
    ('Mistral, sliding window', 'mistral', _GQA | {'sliding_window': 6}),
    ('Ministral', 'ministral',
     _HEAD | {'sliding_window': 6, 'layer_types': _SLIDING}),
    ('Llama 2', 'llama', _SMALL | {'pad_token_id': 0}),
    ('Llama 3.x', 'llama', _GQA | {'rope_parameters': _LLAMA3}),
    ('Llama, linear rope', 'llama', _GQA | {
        'rope_parameters': {'rope_type': 'linear', 'rope_theta': 1e4, 'factor': 4.0}}),
    ('Llama, biases', 'llama', _GQA | {'attention_bias': True, 'mlp_bias': True}),
    ('Qwen2', 'qwen2', _GQA),
    ('Qwen2, sliding window, yarn', 'qwen2', _GQA | {
        'use_sliding_window': True, 'sliding_window': 6, 'max_window_layers': 1,
        'rope_parameters': _YARN}),
    ('Qwen3', 'qwen3', _HEAD),
    ('Gemma 2', 'gemma2', _HEAD | {
        'sliding_window': 6, 'query_pre_attn_scalar': 24,
        'attn_logit_softcapping': 2.0}),
    ('Gemma 3 text', 'gemma3_text', _HEAD | {
        'sliding_window': 6, 'query_pre_attn_scalar': 24, 'layer_types': _SLIDING}),
    ('EmbeddingGemma', 'gemma3_text', _HEAD | {
        'sliding_window': 12, 'layer_types': _SLIDING,
        'use_bidirectional_attention': True}),
    ('Phi-3', 'phi3', _GQA),
    ('Phi-3, longrope', 'phi3', _GQA | {
        'rope_parameters': _LONGROPE, 'original_max_position_embeddings': 32}),
    ('BERT', 'bert', _SMALL),
    ('RoBERTa', 'roberta', _SMALL | {'type_vocab_size': 1}),
    ('XLM-R', 'xlm-roberta', _SMALL | {'type_vocab_size': 1}),
    ('MPNet', 'mpnet', _SMALL),
    ('ModernBERT', 'modernbert', _SMALL | {
        'local_attention': 10, 'global_attn_every_n_layers': 2, 'pad_token_id': 0}),
)


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


def build(folder: pathlib.Path, model_type: str, fields: dict, seed: int = 0):
  """Saves a random torch checkpoint; no parameter is left at 0 or 1."""
  import torch
  import transformers

  torch.manual_seed(seed)
  config = transformers.AutoConfig.for_model(model_type, **fields)
  model = transformers.AutoModel.from_config(config)
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
      real = np.asarray(tokens.mask)
      difference = np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max()
      yield Line(name, mode, padding, float(difference))


def ragged(vocab: int, padding: str, rows: int = 5, length: int = 24) -> Tokens:
  """Random texts of 1 to `length` tokens; padding has id 0 or, for the RoBERTas,
  1, so text uses neither."""
  rng = np.random.default_rng(0)
  ids = rng.integers(2, vocab, (rows, length)).astype(np.int32)
  count = rng.integers(1, length, (rows, 1))
  count[0], count[1] = length, 1
  place = np.arange(length)[None]
  mask = place < count if padding == 'right' else place >= length - count
  return Tokens(ids=np.where(mask, ids, 1).astype(np.int32), mask=mask, pool=mask)


def _torch_model(folder: pathlib.Path, mode: str):
  import transformers

  model = transformers.AutoModel.from_pretrained(
      folder, attn_implementation='eager').eval()
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
