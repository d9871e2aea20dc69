"""Qwen2, Qwen2.5 (arXiv 2412.15115) and Qwen3 (arXiv 2505.09388)."""

import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER, SMALL_WIDE_HEADS
from jaxembed.convert.fields import Fields


def _read(hf: Fields) -> dict[str, Any]:
  window = hf.get('sliding_window', 0) if hf.flag('use_sliding_window') else 0
  start = hf.whole('max_window_layers', 28)
  return decoder.read(hf) | windows.read(
      window, windows.layer_types(hf, window, lambda i: i >= start))


def _read_qwen3(hf: Fields) -> dict[str, Any]:
  return _read(hf) | decoder.biases(hf) | {'head_dim': hf.get('head_dim', 128)}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {
      'layer_types': windows.layer_types_to_hf(cfg),
      'use_sliding_window': bool(cfg.window)})


_YARN = {'rope_type': 'yarn', 'rope_theta': 10000.0, 'factor': 4.0,
         'original_max_position_embeddings': 16}

QWEN2 = Family(
    architecture='Qwen2Model', read=_read, write=_write, rows=decoder.rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'sliding_window': 4096},
    cases={
        'Qwen2': SMALL_DECODER,
        'Qwen2, sliding window, yarn': SMALL_DECODER | {
            'use_sliding_window': True, 'sliding_window': 6, 'max_window_layers': 1,
            'rope_parameters': _YARN},
    })
QWEN3 = dataclasses.replace(
    QWEN2, architecture='Qwen3Model', read=_read_qwen3,
    cases={'Qwen3': SMALL_WIDE_HEADS})
