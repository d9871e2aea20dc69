"""config.json of a Hugging Face model <-> BackboneConfig.

A model type that is not listed, or a field that would change the numbers and is
not supported, is refused by name.
"""

from collections.abc import Mapping
import math
from typing import Any

from jaxembed.config import BackboneConfig, RopeScaling
from jaxembed.models import presets

_ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'relu': 'relu',
                'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
_ACTIVATION_NAMES = {'gelu_tanh': 'gelu_pytorch_tanh'}
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


class UnsupportedModel(ValueError):
  """This config.json describes a model the library does not compute."""


class _Fields:
  """Reads config.json; an absent required field is named."""

  def __init__(self, data: Mapping[str, Any]):
    self.data = data
    self.family = data.get('model_type')

  def need(self, key: str):
    if self.data.get(key) is None:
      raise UnsupportedModel(
          f'config.json (model_type {self.family!r}) lacks {key!r}')
    return self.data[key]

  def get(self, key: str, default=None):
    value = self.data.get(key)
    return default if value is None else value

  def activation(self, default: str) -> str:
    name = self.get('hidden_activation') or self.get('hidden_act', default)
    if name not in _ACTIVATIONS:
      raise UnsupportedModel(
          f'config.json: activation {name!r} is not supported; known: '
          f'{", ".join(sorted(_ACTIVATIONS))}')
    return _ACTIVATIONS[name]


def config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
  """The backbone that `config` (a parsed config.json) describes.

  Raises:
    UnsupportedModel: an unknown model_type, a missing size, or a field whose
      value would change the numbers.
  """
  c = _Fields(config)
  if c.family not in _READERS:
    raise UnsupportedModel(
        f'config.json: model_type {c.family!r} is not supported; known: '
        f'{", ".join(sorted(_READERS))}')
  for key, value in _FIXED.items():
    if config.get(key, value) not in (value, None):
      raise UnsupportedModel(
          f'config.json: {key}={config[key]!r} is not supported (only {value!r}): '
          'it would change the numbers')
  return presets.backbone(c.family, **_READERS[c.family](c))


def attention_from_hf(config: Mapping[str, Any]) -> str:
  """'bidirectional' for encoders and for decoders marked so, else 'causal'."""
  if config.get('model_type') in presets.ENCODERS:
    return 'bidirectional'
  two_way = (config.get('use_bidirectional_attention')
             or config.get('is_causal') is False)
  return 'bidirectional' if two_way else 'causal'


# --- Reading -----------------------------------------------------------------


def _sizes(c: _Fields) -> dict[str, Any]:
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


def _decoder(c: _Fields) -> dict[str, Any]:
  return _sizes(c) | _rope(c, c.data) | {
      'norm_eps': c.get('rms_norm_eps', 1e-6),
      'activation': c.activation('silu'),
  }


def _mistral(c: _Fields) -> dict[str, Any]:
  window = c.get('sliding_window', 0)
  return _decoder(c) | _window(window, _layer_types(c, window, lambda i: True))


def _llama(c: _Fields) -> dict[str, Any]:
  bias = c.get('attention_bias', False)
  return _decoder(c) | {'qkv_bias': bias, 'out_bias': bias,
                        'ff_bias': c.get('mlp_bias', False)}


def _qwen(c: _Fields) -> dict[str, Any]:
  fields = _decoder(c)
  window = c.get('sliding_window', 0) if c.get('use_sliding_window') else 0
  start = c.get('max_window_layers', 28)
  fields |= _window(window, _layer_types(c, window, lambda i: i >= start))
  if c.family == 'qwen3':
    bias = c.get('attention_bias', False)
    fields |= {'head_dim': c.get('head_dim', 128), 'qkv_bias': bias,
               'out_bias': bias}
  return fields


def _gemma2(c: _Fields) -> dict[str, Any]:
  window = c.get('sliding_window', 4096)
  bias = c.get('attention_bias', False)
  return _decoder(c) | _gemma_scales(c) | {
      'qkv_bias': bias, 'out_bias': bias,
      'softcap': float(c.get('attn_logit_softcapping', 0.0)),
  } | _window(window, _layer_types(c, window, lambda i: i % 2 == 0))


def _gemma3(c: _Fields) -> dict[str, Any]:
  window, every = c.get('sliding_window', 4096), c.get('sliding_window_pattern', 6)
  bias = c.get('attention_bias', False)
  fields = _sizes(c) | _gemma_scales(c) | {
      'norm_eps': c.get('rms_norm_eps', 1e-6),
      'activation': c.activation('gelu_pytorch_tanh'),
      'qkv_bias': bias, 'out_bias': bias,
      'softcap': float(c.get('attn_logit_softcapping', 0.0)),
  } | _two_ropes(c, 'rope_theta', 1e6, 'rope_local_base_freq', 1e4)
  fields |= _window(window, _layer_types(c, window, lambda i: (i + 1) % every != 0))
  if c.get('use_bidirectional_attention'):
    # There the window is the whole span, half of it on each side.
    fields['two_way_window'] = window // 2 + 1
  return fields


def _gemma_scales(c: _Fields) -> dict[str, Any]:
  return {'head_dim': c.get('head_dim', 256),
          'embed_scale': math.sqrt(c.need('hidden_size')),
          'query_scale': c.get('query_pre_attn_scalar', 256) ** -0.5}


def _phi3(c: _Fields) -> dict[str, Any]:
  window = c.get('sliding_window', 0)
  return _decoder(c) | _window(window, ())


def _bert(c: _Fields) -> dict[str, Any]:
  return _sizes(c) | {
      'norm_eps': c.get('layer_norm_eps', 1e-12),
      'activation': c.activation('gelu'),
      'type_vocab_size': c.get('type_vocab_size', 2),
  }


def _roberta(c: _Fields) -> dict[str, Any]:
  fields = _bert(c)
  offset = c.get('pad_token_id', 1) + 1
  return fields | {'position_offset': offset,
                   'max_positions': fields['max_positions'] - offset}


def _mpnet(c: _Fields) -> dict[str, Any]:
  buckets = c.get('relative_attention_num_buckets', 32)
  if buckets != 32:
    raise UnsupportedModel(
        f'config.json: relative_attention_num_buckets={buckets} is not supported: '
        'the reference implementation computes 32 whatever the field says')
  return _roberta(c) | {'type_vocab_size': 0}


def _modernbert(c: _Fields) -> dict[str, Any]:
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
  } | _two_ropes(c, 'global_rope_theta', 160000.0, 'local_rope_theta', 10000.0)


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


def _layer_types(c: _Fields, window: int, rule) -> tuple[bool, ...]:
  """Which layers are windowed: `layer_types`, or the family's older rule."""
  count = c.need('num_hidden_layers')
  types = c.get('layer_types')
  if types is None:
    return tuple(bool(window) and rule(i) for i in range(count))
  unknown = set(types) - {'full_attention', 'sliding_attention'}
  if unknown:
    raise UnsupportedModel(
        f'config.json: layer_types contains {sorted(unknown)}; known: '
        'full_attention, sliding_attention')
  return tuple(t == 'sliding_attention' for t in types)


def _two_ropes(c: _Fields, key: str, theta: float, local_key: str,
               local_theta: float) -> dict[str, Any]:
  """Rope of full and of windowed layers, in the new or the old spelling."""
  both = c.get('rope_parameters', {})
  full = dict(both.get('full_attention') or c.get('rope_scaling') or {})
  full.setdefault('rope_theta', c.get(key, theta))
  local = both.get('sliding_attention') or {}
  if local.get('rope_type', 'default') != 'default':
    raise UnsupportedModel(
        f"config.json: rope_type {local['rope_type']!r} of sliding_attention is "
        'not supported (only default)')
  return _rope(c, {'rope_parameters': full}) | {
      'local_rope_theta': float(local.get(
          'rope_theta', c.get(local_key, local_theta)))}


def _rope(c: _Fields, source: Mapping[str, Any]) -> dict[str, Any]:
  """rope_theta, rope_dim and rope_scaling from `rope_parameters`, or from the
  older pair rope_theta and rope_scaling."""
  rope = dict(source.get('rope_parameters') or source.get('rope_scaling') or {})
  theta = rope.get('rope_theta') or source.get('rope_theta') or 10000.0
  part = rope.get('partial_rotary_factor') or c.get('partial_rotary_factor', 1.0)
  fields: dict[str, Any] = {'rope_theta': float(theta)}
  if part != 1.0:
    width = c.get('head_dim', c.need('hidden_size') // c.need('num_attention_heads'))
    fields['rope_dim'] = int(width * part)
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if c.family == 'phi3' and kind in ('su', 'yarn'):
    kind = 'longrope'
  if kind not in _ROPES:
    raise UnsupportedModel(
        f'config.json: rope_type {kind!r} is not supported; known: '
        f'{", ".join(sorted(_ROPES))}')
  return fields | {'rope_scaling': _ROPES[kind](c, rope)}


def _rope_default(c: _Fields, rope) -> None:
  return None


def _rope_linear(c: _Fields, rope) -> RopeScaling:
  return RopeScaling(kind='linear', factor=float(rope['factor']))


def _rope_llama3(c: _Fields, rope) -> RopeScaling:
  return RopeScaling(
      kind='llama3', factor=float(rope['factor']),
      low_freq_factor=float(rope['low_freq_factor']),
      high_freq_factor=float(rope['high_freq_factor']),
      original_positions=_original(c, rope))


def _rope_yarn(c: _Fields, rope) -> RopeScaling:
  for key in ('mscale', 'mscale_all_dim'):
    if rope.get(key):
      raise UnsupportedModel(f'config.json: rope {key} is not supported')
  if rope.get('truncate', True) is not True:
    raise UnsupportedModel('config.json: rope truncate=false is not supported')
  factor = float(rope.get('factor')
                 or c.need('max_position_embeddings') / _original(c, rope))
  default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
  return RopeScaling(
      kind='yarn', factor=factor, original_positions=_original(c, rope),
      attention_factor=float(rope.get('attention_factor') or default),
      beta_fast=float(rope.get('beta_fast') or 32),
      beta_slow=float(rope.get('beta_slow') or 1))


def _rope_longrope(c: _Fields, rope) -> RopeScaling:
  original = _original(c, rope)
  factor = float(rope.get('factor')
                 or c.need('max_position_embeddings') / original)
  default = (1.0 if factor <= 1.0
             else math.sqrt(1 + math.log(factor) / math.log(original)))
  return RopeScaling(
      kind='longrope', factor=factor, original_positions=original,
      attention_factor=float(rope.get('attention_factor') or default),
      short_factors=tuple(map(float, rope['short_factor'])),
      long_factors=tuple(map(float, rope['long_factor'])))


def _original(c: _Fields, rope) -> int:
  key = 'original_max_position_embeddings'
  return rope.get(key) or c.get(key) or c.need('max_position_embeddings')


_ROPES = {'default': _rope_default, 'linear': _rope_linear,
          'llama3': _rope_llama3, 'yarn': _rope_yarn, 'longrope': _rope_longrope}


# --- Writing -----------------------------------------------------------------

_ARCHITECTURES = {
    'mistral': 'MistralModel', 'ministral': 'MinistralModel',
    'llama': 'LlamaModel', 'qwen2': 'Qwen2Model', 'qwen3': 'Qwen3Model',
    'gemma2': 'Gemma2Model', 'gemma3_text': 'Gemma3TextModel',
    'phi3': 'Phi3Model', 'bert': 'BertModel', 'roberta': 'RobertaModel',
    'xlm-roberta': 'XLMRobertaModel', 'mpnet': 'MPNetModel',
    'modernbert': 'ModernBertModel',
}


def config_to_hf(cfg: BackboneConfig, attention: str | None = None
                 ) -> dict[str, Any]:
  """A config.json that `config_from_hf` reads back as `cfg`, and transformers as
  the same model. For models that never had one; keep the original where there is.

  `attention` 'bidirectional' marks a decoder as two-way.
  """
  hf = {
      'architectures': [_ARCHITECTURES[cfg.family]],
      'model_type': cfg.family,
      'vocab_size': cfg.vocab_size,
      'hidden_size': cfg.dim,
      'intermediate_size': cfg.ff_dim,
      'num_hidden_layers': cfg.num_layers,
      'num_attention_heads': cfg.num_heads,
  }
  if cfg.family == 'modernbert':
    return hf | _modernbert_to_hf(cfg)
  if cfg.family in presets.ENCODERS:
    return hf | _encoder_to_hf(cfg)
  return hf | _decoder_to_hf(cfg, attention == 'bidirectional')


def _encoder_to_hf(cfg: BackboneConfig) -> dict[str, Any]:
  hf = {'max_position_embeddings': cfg.max_positions + cfg.position_offset,
        'layer_norm_eps': cfg.norm_eps,
        'hidden_act': _ACTIVATION_NAMES.get(cfg.activation, cfg.activation),
        'pad_token_id': max(cfg.position_offset - 1, 0)}
  if cfg.type_vocab_size:
    hf['type_vocab_size'] = cfg.type_vocab_size
  if cfg.relative_buckets:
    hf['relative_attention_num_buckets'] = cfg.relative_buckets
  return hf


def _modernbert_to_hf(cfg: BackboneConfig) -> dict[str, Any]:
  return {
      'max_position_embeddings': cfg.max_positions, 'norm_eps': cfg.norm_eps,
      'norm_bias': cfg.norm_bias, 'attention_bias': cfg.qkv_bias,
      'mlp_bias': cfg.ff_bias, 'local_attention': 2 * (cfg.window - 1),
      'hidden_activation': _ACTIVATION_NAMES.get(cfg.activation, cfg.activation),
      'layer_types': _type_names(cfg), 'pad_token_id': 0,
      'rope_parameters': _ropes_to_hf(cfg),
  }


def _decoder_to_hf(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  gemma = cfg.family.startswith('gemma')
  name = _ACTIVATION_NAMES.get(cfg.activation, cfg.activation)
  hf = {
      'num_key_value_heads': cfg.num_kv_heads, 'head_dim': cfg.head_dim,
      'max_position_embeddings': cfg.max_positions, 'rms_norm_eps': cfg.norm_eps,
      'hidden_activation' if gemma else 'hidden_act': name,
      'tie_word_embeddings': gemma, 'use_cache': False, 'pad_token_id': 0,
      'attention_bias': cfg.out_bias, 'mlp_bias': cfg.ff_bias,
      'sliding_window': cfg.window or None,
      'rope_parameters': (_ropes_to_hf(cfg) if cfg.local_rope_theta
                          else _rope_to_hf(cfg)),
  }
  if cfg.family not in ('mistral', 'phi3'):
    hf['layer_types'] = _type_names(cfg)
  if cfg.family.startswith('qwen'):
    hf['use_sliding_window'] = bool(cfg.window)
  if gemma:
    hf |= {'query_pre_attn_scalar': round(cfg.query_scale ** -2),
           'attn_logit_softcapping': cfg.softcap or None}
  if cfg.rope_scaling and cfg.rope_scaling.kind == 'longrope':
    hf['original_max_position_embeddings'] = cfg.rope_scaling.original_positions
  if two_way:
    hf |= {'is_causal': False, 'use_bidirectional_attention': True}
    if cfg.family == 'gemma3_text':  # there the field is the whole span
      hf['sliding_window'] = 2 * (cfg.two_way_window - 1)
  return hf


def _type_names(cfg: BackboneConfig) -> list[str]:
  windowed = cfg.windowed_layers or (bool(cfg.window),) * cfg.num_layers
  return ['sliding_attention' if w else 'full_attention' for w in windowed]


def _ropes_to_hf(cfg: BackboneConfig) -> dict[str, Any]:
  return {'full_attention': _rope_to_hf(cfg),
          'sliding_attention': {'rope_type': 'default',
                                'rope_theta': cfg.local_rope_theta}}


def _rope_to_hf(cfg: BackboneConfig) -> dict[str, Any]:
  s = cfg.rope_scaling
  rope: dict[str, Any] = {'rope_type': s.kind if s else 'default',
                          'rope_theta': cfg.rope_theta}
  if cfg.rope_dim:
    rope['partial_rotary_factor'] = cfg.rope_dim / cfg.head_dim
  if s is None:
    return rope
  if s.kind == 'longrope':
    return rope | {'short_factor': list(s.short_factors),
                   'long_factor': list(s.long_factors),
                   'factor': s.factor, 'attention_factor': s.attention_factor,
                   'original_max_position_embeddings': s.original_positions}
  rope['factor'] = s.factor
  if s.kind == 'linear':
    return rope
  rope['original_max_position_embeddings'] = s.original_positions
  if s.kind == 'llama3':
    return rope | {'low_freq_factor': s.low_freq_factor,
                   'high_freq_factor': s.high_freq_factor}
  return rope | {'attention_factor': s.attention_factor,
                 'beta_fast': s.beta_fast, 'beta_slow': s.beta_slow}
