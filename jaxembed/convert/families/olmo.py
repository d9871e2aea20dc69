"""OLMo (arXiv 2402.00838), OLMo 2 (2501.00656) and OLMo 3 (2512.13961)."""

import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, rope, sizes, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER
from jaxembed.convert.fields import Fields

_THETA = 'rope_theta', 5e5  # of OLMo 3


def _read(hf: Fields) -> dict[str, Any]:
  return decoder.read(hf) | decoder.biases(hf) | {
      'norm_eps': 1e-5, 'qkv_clip': float(hf.number('clip_qkv', 0.0))}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {'clip_qkv': cfg.qkv_clip or None})


def _read_olmo2(hf: Fields) -> dict[str, Any]:
  return decoder.read(hf) | decoder.biases(hf)


def _read_olmo3(hf: Fields) -> dict[str, Any]:
  window = hf.get('sliding_window', 0)
  layers = windows.layer_types(hf, window, lambda i: (i + 1) % 4 != 0)
  return sizes.read(hf) | decoder.biases(hf) | {
      'norm_eps': hf.get('rms_norm_eps', 1e-5),
      'activation': hf.activation('hidden_act', 'silu'),
  } | rope.read_dual(hf, _THETA, _THETA) | windows.read_listed(window, layers)


def _write_olmo3(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {'layer_types': windows.layer_types_to_hf(cfg)})


OLMO = Family(
    architecture='OlmoModel', read=_read, write=_write, rows=decoder.rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    cases={'OLMo': SMALL_DECODER | {'clip_qkv': 0.3}})
OLMO2 = dataclasses.replace(
    OLMO, architecture='Olmo2Model', read=_read_olmo2, write=decoder.write,
    defaults={'rms_norm_eps': 1e-5}, cases={'OLMo 2': SMALL_DECODER})
OLMO3 = dataclasses.replace(
    OLMO2, architecture='Olmo3Model', read=_read_olmo3, write=_write_olmo3,
    defaults={'sliding_window': 4096},
    cases={'OLMo 3': SMALL_DECODER | {
        'sliding_window': 6, 'layer_types': windows.SLIDING, 'rope_parameters': {
            'full_attention': {'rope_type': 'yarn', 'rope_theta': 5e5, 'factor': 8.0,
                               'original_max_position_embeddings': 16},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4}}}})
