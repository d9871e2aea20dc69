"""Phi-1, Phi-1.5 and Phi-2 (arXiv 2306.11644, 2309.05463): attention and feed-forward
side by side, positions in a part of each head."""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, rope, sizes
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  return sizes.read(hf) | rope.read(hf, hf.data) | {
      'norm_eps': hf.get('layer_norm_eps', 1e-5),
      'activation': hf.activation('hidden_act', 'gelu_new'),
      'qk_norm': hf.flag('qk_layernorm', False)}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  hf = decoder.write(cfg, two_way, {
      'layer_norm_eps': cfg.norm_eps, 'qk_layernorm': cfg.qk_norm,
      'rope_parameters': rope.write(cfg) | {
          'partial_rotary_factor': (cfg.rope_dim or cfg.head_dim) / cfg.head_dim}})
  return {key: value for key, value in hf.items()
          if key not in ('rms_norm_eps', 'attention_bias', 'mlp_bias')}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'layers.{l}.', LAYERS
  yield Row('embed_tokens.weight', ('backbone/embed/token',))
  for x in 'qkv':
    yield from linear(f'{theirs}self_attn.{x}_proj', True, f'{ours}attn/{x}')
  yield from linear(f'{theirs}self_attn.dense', True, f'{ours}attn/o')
  if cfg.qk_norm:
    for x in 'qk':
      yield from norm(f'{theirs}self_attn.{x}_layernorm', f'{ours}attn/{x}_norm', cfg)
  yield from linear(f'{theirs}mlp.fc1', True, f'{ours}mlp/up')
  yield from linear(f'{theirs}mlp.fc2', True, f'{ours}mlp/down')
  yield from norm(f'{theirs}input_layernorm', f'{ours}attn_norm', cfg)
  yield from norm('final_layernorm', 'backbone/norm', cfg)


PHI = Family(
    architecture='PhiModel', read=_read, write=_write, rows=_rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'partial_rotary_factor': 0.5},
    cases={'Phi-2': SMALL_DECODER,
           'Phi, norms of heads': SMALL_DECODER | {'qk_layernorm': True}})
