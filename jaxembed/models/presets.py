"""Features of every backbone family, and named shapes for random initialisation.

A family is a row of FEATURES: what its layers are made of, without sizes. The
forward pass reads the features only.
"""

import dataclasses

from jaxembed.config import BackboneConfig, ModelConfig, PoolingConfig

_LLAMA = {}  # the defaults of BackboneConfig
_QWEN2 = {'qkv_bias': True, 'norm_eps': 1e-6}
_QWEN3 = {'qk_norm': True, 'norm_eps': 1e-6}
_GEMMA = {'norm_eps': 1e-6, 'norm_offset': 1.0, 'activation': 'gelu_tanh'}
_GEMMA2 = _GEMMA | {'block': 'sandwich'}
_EMBEDDING_GEMMA2 = {
    'norm_eps': 1e-6, 'block': 'sandwich', 'activation': 'gelu_tanh', 'qk_norm': True,
    'v_norm': True, 'query_scale': 1.0, 'layer_scale': True, 'rope_theta': 1e6,
    'local_rope_theta': 10000.0,
}
_GEMMA3 = _GEMMA2 | {'qk_norm': True, 'local_rope_theta': 10000.0}
_OLMO2 = {'block': 'behind', 'qk_norm': True, 'qk_norm_heads': 'all'}
_PHI = {
    'norm': 'layer', 'norm_bias': True, 'block': 'parallel', 'qkv_bias': True,
    'out_bias': True, 'ff_bias': True, 'gated': False, 'activation': 'gelu_tanh',
}
_BERT = {
    'norm': 'layer', 'norm_bias': True, 'norm_eps': 1e-12, 'block': 'post',
    'final_norm': False, 'embed_norm': True, 'type_vocab_size': 2,
    'position': 'learned', 'positions': 'index', 'qkv_bias': True,
    'out_bias': True, 'ff_bias': True, 'gated': False, 'activation': 'gelu',
}
_ROBERTA = _BERT | {'norm_eps': 1e-5, 'positions': 'mask', 'position_offset': 2,
                    'type_vocab_size': 1}
_MPNET = _ROBERTA | {'type_vocab_size': 0, 'relative_buckets': 32}
_MODERNBERT = {
    'norm': 'layer', 'embed_norm': True, 'first_norm': False,
    'activation': 'gelu', 'rope_theta': 160000.0, 'local_rope_theta': 10000.0,
}

_DEBERTA = _BERT | {
    'norm_eps': 1e-7, 'type_vocab_size': 0, 'position': 'none', 'positions': 'mask',
    'relative_buckets': 256, 'relative_distance': 512, 'disentangled': ('c2p', 'p2c')}
_T5 = {'norm_eps': 1e-6, 'position': 'none', 'relative_buckets': 32,
       'query_scale': 1.0, 'gated': False, 'activation': 'relu'}
_MT5 = _T5 | {'gated': True, 'activation': 'gelu_tanh'}
_ROTARY_BERT = _BERT | {'position': 'rope', 'positions': 'mask'}
_NOMIC_BERT = _ROTARY_BERT | {
    'qkv_bias': False, 'out_bias': False, 'ff_bias': False, 'gated': True,
    'activation': 'silu', 'rope_theta': 1000.0}
_GTE = _ROTARY_BERT | {'type_vocab_size': 1, 'ff_bias': False, 'down_bias': True,
                       'gated': True, 'rope_theta': 160000.0}
_JINA_V3 = _ROTARY_BERT | {'norm_eps': 1e-5, 'type_vocab_size': 1,
                           'rope_theta': 20000.0}

# Pre-trained with a causal mask, and causal unless told otherwise.
_DECODERS = {
    'mistral': _LLAMA, 'ministral': _LLAMA, 'ministral3': {'positions': 'index'},
    'llama': _LLAMA, 'phi': _PHI, 'phi3': _LLAMA, 'granite': {'norm_eps': 1e-6},
    'olmo': {'norm': 'layer', 'norm_scale': False}, 'olmo2': _OLMO2,
    'olmo3': _OLMO2 | {'rope_theta': 5e5, 'local_rope_theta': 5e5},
    'smollm3': {'norm_eps': 1e-6, 'rope_theta': 2e6},
    'qwen2': _QWEN2, 'qwen3': _QWEN3, 'qwen3_moe': _QWEN3,
    'mixtral': {'rope_theta': 1e6},
    'gemma': _GEMMA, 'gemma2': _GEMMA2, 'gemma3_text': _GEMMA3,
}
# Pre-trained to see both directions.
_ENCODERS = {
    'embedding_gemma2_text': _EMBEDDING_GEMMA2,
    'bert': _BERT, 'roberta': _ROBERTA, 'xlm-roberta': _ROBERTA,
    'camembert': _ROBERTA, 'distilbert': _BERT | {'type_vocab_size': 0},
    'deberta-v2': _DEBERTA, 'electra': _BERT,
    'albert': _BERT | {'activation': 'gelu_tanh'},
    'jina_bert': _BERT | {'position': 'alibi', 'positions': 'mask', 'ff_bias': False,
                          'down_bias': True, 'gated': True},
    'mpnet': _MPNET, 'modernbert': _MODERNBERT,
    'xlm-roberta-xl': _ROBERTA | {'block': 'pre', 'embed_norm': False,
                                  'final_norm': True},
    'static': {'position': 'none', 'final_norm': False},
    't5': _T5, 'mt5': _MT5, 'umt5': _MT5 | {'relative_per_layer': True},
    'nomic_bert': _NOMIC_BERT, 'gte': _GTE, 'eurobert': _LLAMA,
    'jina_embeddings_v3': _JINA_V3,
}
FEATURES = _DECODERS | _ENCODERS
ENCODERS = tuple(_ENCODERS)


def backbone(family: str, **fields) -> BackboneConfig:
  """The features of `family` with the given sizes (or any other field).

  Raises:
    ValueError: an unknown family.
  """
  if family not in FEATURES:
    raise ValueError(f'family {family!r} is unknown; choose one of '
                     f'{", ".join(sorted(FEATURES))}')
  return BackboneConfig(**{'family': family, **FEATURES[family], **fields})


def tiny(family: str, **fields) -> BackboneConfig:
  """Three layers of width 32, for tests; windows where the family has them."""
  kv_heads = 4 if family in ENCODERS else 2
  sizes = {'vocab_size': 96, 'dim': 32, 'ff_dim': 48, 'num_layers': 3,
           'num_heads': 4, 'num_kv_heads': kv_heads, 'head_dim': 8,
           'max_positions': 64}
  return backbone(family, **{**sizes, **_TINY_EXTRAS.get(family, {}), **fields})


_TINY_WINDOW = {'window': 6, 'two_way_window': 7}
_TINY_EXTRAS = {
    'embedding_gemma2_text': _TINY_WINDOW | {
        'window': 7, 'windowed_layers': (True, True, False), 'num_kv_heads': 2,
        'full_head_dim': 16, 'full_kv_heads': 1, 'layer_input_dim': 12, 'out_dim': 24,
        'embed_scale': 32**0.5},
    'albert': {'embed_dim': 16, 'own_layers': 1},
    'deberta-v2': {'relative_buckets': 8, 'relative_distance': 16,
                   'query_scale': 24**-0.5},
    'static': {'num_layers': 0, 'ff_dim': 1, 'num_heads': 1, 'num_kv_heads': 1,
               'head_dim': 1},
    'gemma': {'embed_scale': 32**0.5},
    'granite': {'embed_scale': 12.0, 'query_scale': 0.2, 'residual_scale': 0.2},
    'ministral3': {'query_growth': 0.1, 'query_growth_every': 8},
    'olmo3': _TINY_WINDOW | {'windowed_layers': (True, True, False)},
    'phi': {'rope_dim': 4},
    'mixtral': {'experts': 4, 'experts_used': 2},
    'qwen3_moe': {'experts': 6, 'experts_used': 2, 'experts_normed': False},
    'smollm3': {'rope_layers': (True, False, True)},
    'gemma2': _TINY_WINDOW | {
        'windowed_layers': (True, False, True), 'softcap': 50.0,
        'query_scale': 16**-0.5, 'embed_scale': 32**0.5},
    'gemma3_text': _TINY_WINDOW | {
        'windowed_layers': (True, True, False), 'query_scale': 16**-0.5,
        'embed_scale': 32**0.5, 'rope_theta': 1e6},
    'modernbert': {'window': 5, 'two_way_window': 5,
                   'windowed_layers': (False, True, True)},
}


def _minilm_l6() -> ModelConfig:
  return ModelConfig(backbone=backbone(
      'bert', vocab_size=30522, dim=384, ff_dim=1536, num_layers=6, num_heads=12,
      num_kv_heads=12, head_dim=32, max_positions=512), max_length=256)


def _bert_base() -> ModelConfig:
  return ModelConfig(backbone=backbone(
      'bert', vocab_size=30522, dim=768, ff_dim=3072, num_layers=12, num_heads=12,
      num_kv_heads=12, head_dim=64, max_positions=512))


def _qwen3_0p6b() -> ModelConfig:
  return ModelConfig(backbone=backbone(
      'qwen3', vocab_size=151936, dim=1024, ff_dim=3072, num_layers=28,
      num_heads=16, num_kv_heads=8, head_dim=128, max_positions=32768,
      rope_theta=1e6), pooling=PoolingConfig(kind='last'), attention='causal',
      dtype='bfloat16')


def _mistral_7b() -> ModelConfig:
  return ModelConfig(backbone=backbone(
      'mistral', vocab_size=32000, dim=4096, ff_dim=14336, num_layers=32,
      num_heads=32, num_kv_heads=8, head_dim=128, max_positions=32768),
      max_length=512, dtype='bfloat16')


def _nv_embed() -> ModelConfig:
  return dataclasses.replace(
      _mistral_7b(), pooling=PoolingConfig(kind='latent_attention'))


def _tiny_bert() -> ModelConfig:
  return ModelConfig(backbone=tiny('bert'), max_length=64)


def _tiny_mistral() -> ModelConfig:
  return ModelConfig(backbone=tiny('mistral'), max_length=64)


PRESETS = {'minilm_l6': _minilm_l6, 'bert_base': _bert_base,
           'qwen3_0p6b': _qwen3_0p6b, 'mistral_7b': _mistral_7b,
           'nv_embed': _nv_embed,
           'tiny_bert': _tiny_bert, 'tiny_mistral': _tiny_mistral}
# Whose shape a preset is, by hub id.
PUBLISHED = {'mistralai/Mistral-7B-v0.1': 'mistral_7b'}


def get(name: str) -> ModelConfig:
  """The configuration called `name`.

  Raises:
    ValueError: an unknown name.
  """
  if name not in PRESETS:
    raise ValueError(f'preset {name!r} is unknown; choose one of '
                     f'{", ".join(sorted(PRESETS))}')
  return PRESETS[name]()
