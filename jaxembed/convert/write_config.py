"""BackboneConfig -> config.json, for models that never had one."""

from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert import rope_fields
from jaxembed.models import presets

_ACTIVATION_NAMES = {'gelu_tanh': 'gelu_pytorch_tanh'}
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
      'rope_parameters': rope_fields.two_to_hf(cfg),
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
      'rope_parameters': (rope_fields.two_to_hf(cfg) if cfg.local_rope_theta
                          else rope_fields.one_to_hf(cfg)),
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
  if two_way and cfg.family == 'gemma3_text':
    hf |= {'use_bidirectional_attention': True,  # and the field is the whole span
           'sliding_window': 2 * (cfg.two_way_window - 1)}
  elif two_way:
    hf |= {'is_causal': False, 'use_bidirectional_attention': True}
  return hf


def _type_names(cfg: BackboneConfig) -> list[str]:
  windowed = cfg.windowed_layers or (bool(cfg.window),) * cfg.num_layers
  return ['sliding_attention' if w else 'full_attention' for w in windowed]
