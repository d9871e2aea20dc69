"""Rotary positions in config.json, the new spelling and the old, both ways."""

from collections.abc import Mapping
import math
from typing import Any

from jaxembed.config import BackboneConfig, RopeScaling
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.files.folder import short

# Families of which transformers turns a part of each head.
_PARTIAL = ('phi', 'phi3')


def read_dual(hf: Fields, full_theta: tuple[str, float],
              local_theta: tuple[str, float]) -> dict[str, Any]:
  """rope_theta, rope_dim and rope_scaling of full layers, and local_rope_theta of
  windowed ones, from `rope_parameters` or from the older keys.

  `full_theta` and `local_theta` are the older key and its default.
  """
  both = hf.within('rope_parameters')
  full = dict(both.get('full_attention') or hf.get('rope_scaling') or {})
  full.setdefault('rope_theta', hf.number(*full_theta))
  local = both.within('sliding_attention')
  if local.get('rope_type', 'default') != 'default':
    raise UnsupportedModel(
        f'{local.file}: rope_type {short(local.get("rope_type"))} is not supported '
        '(only default)')
  return read(hf, {'rope_parameters': full}) | {
      'local_rope_theta': float(local.get('rope_theta', hf.number(*local_theta)))}


def read(hf: Fields, source: Mapping[str, Any],
         names: Mapping[str, str] | None = None, theta: float = 10000.0
         ) -> dict[str, Any]:
  """rope_theta, rope_dim and rope_scaling from `rope_parameters` of `source`, or
  from the older pair rope_theta and rope_scaling.

  `names` are a family's own names of scalings -> the usual ones; `theta` is what an
  absent rope_theta means.
  """
  given = Fields(source, hf.file)
  new = given.get('rope_parameters')
  rope = given.within('rope_parameters' if new else 'rope_scaling')
  theta = rope.get('rope_theta') or given.get('rope_theta') or theta
  part = rope.get('partial_rotary_factor') or hf.get('partial_rotary_factor', 1.0)
  fields: dict[str, Any] = {'rope_theta': float(theta)}
  if part != 1.0 and hf.family not in _PARTIAL:
    raise UnsupportedModel(
        f'{rope.file}: partial_rotary_factor={short(part)} is not supported for '
        f'{hf.family}, of which transformers turns whole heads; take it out')
  if part != 1.0:
    width = hf.get('head_dim', hf.need('hidden_size') // hf.need('num_attention_heads'))
    fields['rope_dim'] = int(width * part)
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  kind = (names or {}).get(kind, kind)
  if kind not in _SCALINGS:
    raise UnsupportedModel(
        f'{rope.file}: rope_type {short(kind)} is not supported; known: '
        f'{", ".join(sorted(_SCALINGS))}')
  return fields | {'rope_scaling': _SCALINGS[kind](hf, rope)}


def _default(hf: Fields, rope: Fields) -> None:
  return None


def _linear(hf: Fields, rope: Fields) -> RopeScaling:
  return RopeScaling(kind='linear', factor=float(rope.need('factor')))


def _llama3(hf: Fields, rope: Fields) -> RopeScaling:
  return RopeScaling(
      kind='llama3', factor=float(rope.need('factor')),
      low_freq_factor=float(rope.need('low_freq_factor')),
      high_freq_factor=float(rope.need('high_freq_factor')),
      original_positions=original_positions(hf, rope))


def _yarn(hf: Fields, rope: Fields) -> RopeScaling:
  if not rope.get('truncate', True):
    raise UnsupportedModel(f'{rope.file}: truncate=false is not supported')
  factor = float(rope.get('factor')
                 or hf.need('max_position_embeddings') / original_positions(hf, rope))
  over, under = rope.number('mscale'), rope.number('mscale_all_dim')
  default = _yarn_attention(factor, 1.0)
  if over and under:
    default = _yarn_attention(factor, over) / _yarn_attention(factor, under)
  return RopeScaling(
      kind='yarn', factor=factor, original_positions=original_positions(hf, rope),
      attention_factor=float(rope.get('attention_factor', default)),
      beta_fast=float(rope.get('beta_fast', 32)),
      beta_slow=float(rope.get('beta_slow', 1)))


def _yarn_attention(factor: float, strength: float) -> float:
  """What attention gains where positions are stretched by `factor`."""
  return 0.1 * strength * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(hf: Fields, rope: Fields) -> RopeScaling:
  original = original_positions(hf, rope)
  factor = float(rope.get('factor')
                 or hf.need('max_position_embeddings') / original)
  default = (1.0 if factor <= 1.0 or original <= 1
             else math.sqrt(1 + math.log(factor) / math.log(original)))
  return RopeScaling(
      kind='longrope', factor=factor, original_positions=original,
      attention_factor=float(rope.get('attention_factor', default)),
      short_factors=tuple(map(float, rope.need('short_factor'))),
      long_factors=tuple(map(float, rope.need('long_factor'))))


def original_positions(hf: Fields, rope: Fields) -> int:
  """Tokens of the longest text of pre-training, before positions were stretched."""
  key = 'original_max_position_embeddings'
  return rope.get(key) or hf.get(key) or hf.need('max_position_embeddings')


_SCALINGS = {'default': _default, 'linear': _linear,
          'llama3': _llama3, 'yarn': _yarn, 'longrope': _longrope}


# --- Writing -----------------------------------------------------------------


def write_dual(cfg: BackboneConfig) -> dict[str, Any]:
  """rope_parameters of models whose windowed layers have a rope of their own."""
  return {'full_attention': write(cfg),
          'sliding_attention': {'rope_type': 'default',
                                'rope_theta': cfg.local_rope_theta}}


def write(cfg: BackboneConfig) -> dict[str, Any]:
  """rope_parameters of models with one rope."""
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
