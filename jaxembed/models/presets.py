"""Named shapes of backbones, for random initialisation and for tests.

`tiny` gives every family at a size that a test can afford.
"""

from jaxembed.config import BackboneConfig, ModelConfig

_BERT = {
    'family': 'bert', 'norm': 'layer', 'norm_bias': True, 'block': 'post',
    'final_norm': False, 'embed_norm': True, 'type_vocab_size': 2,
    'position': 'learned', 'positions': 'index', 'qkv_bias': True,
    'out_bias': True, 'ff_bias': True, 'gated': False, 'activation': 'gelu',
    'norm_eps': 1e-12,
}
_MISTRAL = {'family': 'mistral'}

# The features of each family; sizes are the checkpoint's.
FEATURES = {'bert': _BERT, 'mistral': _MISTRAL}


def backbone(family: str, **sizes) -> BackboneConfig:
  """The features of `family` with the given sizes (and any other field).

  Raises:
    ValueError: an unknown family.
  """
  if family not in FEATURES:
    raise ValueError(f'family {family!r} is unknown; choose one of '
                     f'{", ".join(sorted(FEATURES))}')
  return BackboneConfig(**{**FEATURES[family], **sizes})


def tiny(family: str, **changes) -> BackboneConfig:
  """Two layers of width 32, for tests."""
  heads = 4 if FEATURES[family].get('norm', 'rms') == 'layer' else 2
  sizes = {'vocab_size': 96, 'dim': 32, 'ff_dim': 48, 'num_layers': 2,
           'num_heads': 4, 'num_kv_heads': heads, 'head_dim': 8,
           'max_positions': 64}
  return backbone(family, **{**sizes, **changes})


def _minilm_l6() -> ModelConfig:
  return ModelConfig(backbone=backbone(
      'bert', vocab_size=30522, dim=384, ff_dim=1536, num_layers=6, num_heads=12,
      num_kv_heads=12, head_dim=32, max_positions=512), max_length=256)


def _mistral_7b() -> ModelConfig:
  return ModelConfig(backbone=backbone(
      'mistral', vocab_size=32000, dim=4096, ff_dim=14336, num_layers=32,
      num_heads=32, num_kv_heads=8, head_dim=128, max_positions=32768),
      max_length=512, dtype='bfloat16')


def _tiny_bert() -> ModelConfig:
  return ModelConfig(backbone=tiny('bert'), max_length=64)


def _tiny_mistral() -> ModelConfig:
  return ModelConfig(backbone=tiny('mistral'), max_length=64)


PRESETS = {'minilm_l6': _minilm_l6, 'mistral_7b': _mistral_7b,
           'tiny_bert': _tiny_bert, 'tiny_mistral': _tiny_mistral}


def get(name: str) -> ModelConfig:
  """The configuration called `name`.

  Raises:
    ValueError: an unknown name.
  """
  if name not in PRESETS:
    raise ValueError(f'preset {name!r} is unknown; choose one of '
                     f'{", ".join(sorted(PRESETS))}')
  return PRESETS[name]()
