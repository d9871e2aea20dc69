"""config.json of a Hugging Face model <-> BackboneConfig.

A model type that is not listed, or a field that would change the numbers and is
not supported, is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import FAMILIES, aliases
from jaxembed.convert.families.names import family_of, unknown
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.files.folder import short
from jaxembed.models import presets

__all__ = ['UnsupportedModel', 'attention_from_hf', 'config_from_hf', 'config_to_hf']


def config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
  """The backbone that `config` (a parsed config.json) describes.

  Raises:
    UnsupportedModel: an unknown model_type, a missing size, or a field whose
      value would change the numbers.
  """
  config = aliases.as_family(config)
  fields = Fields(config)
  name = family_of(config)
  if name not in FAMILIES:
    known = [*FAMILIES, *aliases.TWO_WAY, *aliases.COMPOSITES]
    raise UnsupportedModel(f'config.json: {unknown(fields.family, known)}')
  family = FAMILIES[name]
  for key, value in family.only.items():
    if config.get(key, value) not in (value, None):
      raise UnsupportedModel(
          f'config.json: {key}={short(config[key])} is not supported (only {value!r}): '
          'it would change the numbers')
  try:
    return presets.backbone(
        name, **family.read(Fields({**family.defaults, **config})))
  except UnsupportedModel:
    raise
  except ValueError as e:  # sizes that do not go together
    raise UnsupportedModel(f'config.json: {e}') from None


def attention_from_hf(config: Mapping[str, Any]) -> str:
  """'bidirectional' for encoders and for decoders marked so, else 'causal'."""
  config = aliases.as_family(config)
  if family_of(config) in presets.ENCODERS:
    return 'bidirectional'
  # Of families other than Gemma transformers reads is_causal alone.
  if (config.get('use_bidirectional_attention') and config.get('is_causal') is not False
      and not str(config.get('model_type')).startswith('gemma')):
    raise UnsupportedModel(
        'config.json: use_bidirectional_attention=true without is_causal=false is read '
        f'as causal by transformers for {config.get("model_type")}; write is_causal: '
        'false if the model attends both ways, or take the key out')
  two_way = (config.get('use_bidirectional_attention')
             or config.get('is_causal') is False)
  return 'bidirectional' if two_way else 'causal'


def config_to_hf(cfg: BackboneConfig, attention: str | None = None
                 ) -> dict[str, Any]:
  """A config.json that `config_from_hf` reads back as `cfg`, and transformers as
  the same model. For models that never had one; keep the original where there is.

  `attention` 'bidirectional' marks a decoder as two-way.
  """
  family = FAMILIES[cfg.family]
  return {'architectures': [family.architecture], 'model_type': cfg.family,
          **family.write(cfg, attention == 'bidirectional')}
