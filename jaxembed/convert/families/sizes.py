"""Sizes under the names that most families give them, both ways."""

from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.fields import Fields

# Of the small models that are compared with torch.
SMALL = {'vocab_size': 99, 'hidden_size': 32, 'intermediate_size': 48,
         'num_hidden_layers': 3, 'num_attention_heads': 4,
         'max_position_embeddings': 64}
SMALL_DECODER = SMALL | {'num_key_value_heads': 2, 'pad_token_id': 0}
SMALL_WIDE_HEADS = SMALL_DECODER | {'head_dim': 16}


def read(hf: Fields) -> dict[str, Any]:
  """Fields of BackboneConfig."""
  heads = hf.need('num_attention_heads')
  return {
      'vocab_size': hf.need('vocab_size'),
      'dim': hf.need('hidden_size'),
      'ff_dim': hf.need('intermediate_size'),
      'num_layers': hf.need('num_hidden_layers'),
      'num_heads': heads,
      'num_kv_heads': hf.get('num_key_value_heads', heads),
      'head_dim': hf.get('head_dim', hf.need('hidden_size') // heads),
      'max_positions': hf.need('max_position_embeddings'),
  }


def write(cfg: BackboneConfig) -> dict[str, Any]:
  """Keys of config.json, those of heads and positions aside."""
  return {
      'vocab_size': cfg.vocab_size,
      'hidden_size': cfg.dim,
      'intermediate_size': cfg.ff_dim,
      'num_hidden_layers': cfg.num_layers,
      'num_attention_heads': cfg.num_heads,
  }


def activation_to_hf(cfg: BackboneConfig) -> str:
  """Transformers' name of the activation."""
  return {'gelu_tanh': 'gelu_pytorch_tanh'}.get(cfg.activation, cfg.activation)
