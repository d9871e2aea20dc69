"""config.json of a Hugging Face model -> BackboneConfig.

A model type that is not listed, or a field that would change the numbers and is
not supported, is refused by name.
"""

from collections.abc import Mapping
import math
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert import rope_fields
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.folder import short
from jaxembed.models import presets

__all__ = ['UnsupportedModel', 'attention_from_hf', 'config_from_hf']

# Fields that must have this value (or be absent): anything else means numbers
# that this library would not reproduce.
_FIXED = {
    'position_embedding_type': 'absolute',
    'is_decoder': False,
    'add_cross_attention': False,
    'embedding_size': None,
    'quantization_config': None,
    'compression_config': None,
}


def config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
  """The backbone that `config` (a parsed config.json) describes.

  Raises:
    UnsupportedModel: an unknown model_type, a missing size, or a field whose
      value would change the numbers.
  """
  c = Fields(config)
  if c.family not in _READERS:
    raise UnsupportedModel(
        f'config.json: model_type {short(c.family)} is not supported; known: '
        f'{", ".join(sorted(_READERS))}')
  for key, value in _FIXED.items():
    if config.get(key, value) not in (value, None):
      raise UnsupportedModel(
          f'config.json: {key}={short(config[key])} is not supported (only {value!r}): '
          'it would change the numbers')
  try:
    return presets.backbone(c.family, **_READERS[c.family](c))
  except UnsupportedModel:
    raise
  except ValueError as e:  # sizes that do not go together
    raise UnsupportedModel(f'config.json: {e}') from None


def attention_from_hf(config: Mapping[str, Any]) -> str:
  """'bidirectional' for encoders and for decoders marked so, else 'causal'."""
  if config.get('model_type') in presets.ENCODERS:
    return 'bidirectional'
  two_way = (config.get('use_bidirectional_attention')
             or config.get('is_causal') is False)
  return 'bidirectional' if two_way else 'causal'


# --- Reading -----------------------------------------------------------------


def _sizes(c: Fields) -> dict[str, Any]:
  heads = c.need('num_attention_heads')
  return {
      'vocab_size': c.need('vocab_size'),
      'dim': c.need('hidden_size'),
      'ff_dim': c.need('intermediate_size'),
      'num_layers': c.need('num_hidden_layers'),
      'num_heads': heads,
      'num_kv_heads': c.get('num_key_value_heads', heads),
      'head_dim': c.get('head_dim', c.need('hidden_size') // heads),
      'max_positions': c.need('max_position_embeddings'),
  }


def _decoder(c: Fields) -> dict[str, Any]:
  return _sizes(c) | rope_fields.one(c, c.data) | {
      'norm_eps': c.get('rms_norm_eps', 1e-6),
      'activation': c.activation('silu'),
  }


def _mistral(c: Fields) -> dict[str, Any]:
  window = c.get('sliding_window', 0)
  return _decoder(c) | _window(window, _layer_types(c, window, lambda i: True))


def _llama(c: Fields) -> dict[str, Any]:
  bias = c.get('attention_bias', False)
  return _decoder(c) | {'qkv_bias': bias, 'out_bias': bias,
                        'ff_bias': c.get('mlp_bias', False)}


def _qwen(c: Fields) -> dict[str, Any]:
  fields = _decoder(c)
  window = c.get('sliding_window', 0) if c.get('use_sliding_window') else 0
  start = c.get('max_window_layers', 28)
  fields |= _window(window, _layer_types(c, window, lambda i: i >= start))
  if c.family == 'qwen3':
    bias = c.get('attention_bias', False)
    fields |= {'head_dim': c.get('head_dim', 128), 'qkv_bias': bias,
               'out_bias': bias}
  return fields


def _gemma2(c: Fields) -> dict[str, Any]:
  window = c.get('sliding_window', 4096)
  bias = c.get('attention_bias', False)
  return _decoder(c) | _gemma_scales(c) | {
      'qkv_bias': bias, 'out_bias': bias,
      'softcap': float(c.get('attn_logit_softcapping', 0.0)),
  } | _window(window, _layer_types(c, window, lambda i: i % 2 == 0))


def _gemma3(c: Fields) -> dict[str, Any]:
  window, every = c.get('sliding_window', 4096), c.get('sliding_window_pattern', 6)
  bias = c.get('attention_bias', False)
  fields = _sizes(c) | _gemma_scales(c) | {
      'norm_eps': c.get('rms_norm_eps', 1e-6),
      'activation': c.activation('gelu_pytorch_tanh'),
      'qkv_bias': bias, 'out_bias': bias,
      'softcap': float(c.get('attn_logit_softcapping', 0.0)),
  } | rope_fields.two(c, 'rope_theta', 1e6, 'rope_local_base_freq', 1e4)
  layers = _layer_types(c, window, lambda i: (i + 1) % every != 0)
  if any(layers):  # also where all are: they have a rope of their own
    fields |= {'window': window, 'two_way_window': window and window + 1,
               'windowed_layers': layers}
  if c.get('use_bidirectional_attention'):
    # There the window is the whole span, half of it on each side; with is_causal
    # false as well, transformers sees one key further.
    fields['two_way_window'] = window // 2 + 1 + (c.data.get('is_causal') is False)
  return fields


def _gemma_scales(c: Fields) -> dict[str, Any]:
  return {'head_dim': c.get('head_dim', 256),
          'embed_scale': math.sqrt(c.need('hidden_size')),
          'query_scale': c.get('query_pre_attn_scalar', 256) ** -0.5}


def _phi3(c: Fields) -> dict[str, Any]:
  window = c.get('sliding_window', 0)
  return _decoder(c) | _window(window, ())


def _bert(c: Fields) -> dict[str, Any]:
  return _sizes(c) | {
      'norm_eps': c.get('layer_norm_eps', 1e-12),
      'activation': c.activation('gelu'),
      'type_vocab_size': c.get('type_vocab_size', 2),
  }


def _roberta(c: Fields) -> dict[str, Any]:
  fields = _bert(c)
  offset = c.get('pad_token_id', 1) + 1
  return fields | {'position_offset': offset,
                   'max_positions': fields['max_positions'] - offset}


def _mpnet(c: Fields) -> dict[str, Any]:
  buckets = c.get('relative_attention_num_buckets', 32)
  if buckets != 32:
    raise UnsupportedModel(
        f'config.json: relative_attention_num_buckets={buckets} is not supported: '
        'the reference implementation computes 32 whatever the field says')
  # transformers counts positions by id 1, whatever pad_token_id says.
  return _bert(c) | {'type_vocab_size': 0, 'position_offset': 2,
                     'max_positions': c.need('max_position_embeddings') - 2}


def _modernbert(c: Fields) -> dict[str, Any]:
  every, half = c.get('global_attn_every_n_layers', 3), c.get('local_attention', 128)
  half //= 2
  bias, ff_bias = c.get('attention_bias', False), c.get('mlp_bias', False)
  return _sizes(c) | {
      'norm_eps': c.get('norm_eps', 1e-5),
      'norm_bias': c.get('norm_bias', False),
      'activation': c.activation('gelu'),
      'qkv_bias': bias, 'out_bias': bias, 'ff_bias': ff_bias,
      'window': half + 1, 'two_way_window': half + 1,
      'windowed_layers': _layer_types(c, half, lambda i: i % every != 0),
  } | rope_fields.two(c, 'global_rope_theta', 160000.0, 'local_rope_theta', 10000.0)


_READERS = {
    'mistral': _mistral, 'ministral': _mistral, 'llama': _llama, 'qwen2': _qwen,
    'qwen3': _qwen, 'gemma2': _gemma2, 'gemma3_text': _gemma3, 'phi3': _phi3,
    'bert': _bert, 'roberta': _roberta, 'xlm-roberta': _roberta,
    'mpnet': _mpnet, 'modernbert': _modernbert,
}


def _window(window: int, layers: tuple[bool, ...]) -> dict[str, Any]:
  """Windows as transformers draws them: `window` keys to the left, own one
  included, when causal; `window` more on either side when bidirectional."""
  if not window or (layers and not any(layers)):
    return {}
  return {'window': window, 'two_way_window': window + 1,
          'windowed_layers': () if all(layers) else layers}


def _layer_types(c: Fields, window: int, rule) -> tuple[bool, ...]:
  """Which layers are windowed: `layer_types`, or the family's older rule."""
  count = c.need('num_hidden_layers')
  types = c.get('layer_types')
  if types is None:
    return tuple(bool(window) and rule(i) for i in range(count))
  unknown = set(types) - {'full_attention', 'sliding_attention'}
  if unknown:
    raise UnsupportedModel(
        f'config.json: layer_types contains {short(sorted(unknown))}; known: '
        'full_attention, sliding_attention')
  return tuple(t == 'sliding_attention' for t in types)
