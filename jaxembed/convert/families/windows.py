"""Windowed attention in config.json: how wide, and in which layers, both ways."""

from collections.abc import Callable
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.files.folder import short

# Layers of the small models that are compared with torch.
SLIDING = ['sliding_attention', 'full_attention', 'sliding_attention']


def read(window: int, layers: tuple[bool, ...]) -> dict[str, Any]:
  """Windows as transformers draws them: `window` keys to the left, own one
  included, when causal; `window` more on either side when bidirectional."""
  if not window or (layers and not any(layers)):
    return {}
  return {'window': window, 'two_way_window': window + 1,
          'windowed_layers': () if all(layers) else layers}


def read_listed(window: int, layers: tuple[bool, ...]) -> dict[str, Any]:
  """As `read`, of families whose windowed layers have a rope of their own: they are
  listed also where all are windowed."""
  if not any(layers):
    return {}
  return {'window': window, 'two_way_window': window and window + 1,
          'windowed_layers': layers}


def layer_types(hf: Fields, window: int, rule: Callable[[int], bool]
                ) -> tuple[bool, ...]:
  """Which layers are windowed: `layer_types`, or the family's older rule."""
  count = hf.need('num_hidden_layers')
  types = hf.get('layer_types')
  if types is None:
    return tuple(bool(window) and rule(i) for i in range(count))
  unknown = set(types) - {'full_attention', 'sliding_attention'}
  if unknown:
    raise UnsupportedModel(
        f'config.json: layer_types contains {short(sorted(unknown))}; known: '
        'full_attention, sliding_attention')
  return tuple(t == 'sliding_attention' for t in types)


def layer_types_to_hf(cfg: BackboneConfig) -> list[str]:
  """The inverse of `layer_types`."""
  windowed = cfg.windowed_layers or (bool(cfg.window),) * cfg.num_layers
  return ['sliding_attention' if w else 'full_attention' for w in windowed]
