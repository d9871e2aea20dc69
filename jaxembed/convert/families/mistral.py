"""Mistral (Jiang et al. 2023, arXiv 2310.06825) and Ministral: windowed decoders."""

import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER, SMALL_WIDE_HEADS
from jaxembed.convert.fields import Fields


def _read(hf: Fields) -> dict[str, Any]:
  window = hf.get('sliding_window', 0)
  return decoder.read(hf) | windows.read(
      window, windows.layer_types(hf, window, lambda i: True))


def _write_mixed(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {'layer_types': windows.layer_types_to_hf(cfg)})


MISTRAL = Family(
    architecture='MistralModel', read=_read, write=decoder.write, rows=decoder.rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'sliding_window': 4096, 'num_key_value_heads': 8},
    cases={
        'Mistral, sliding window': SMALL_DECODER | {'sliding_window': 6},
        'Mistral': SMALL_DECODER | {'sliding_window': None},
    })
MINISTRAL = dataclasses.replace(
    MISTRAL, architecture='MinistralModel', write=_write_mixed,
    cases={'Ministral': SMALL_WIDE_HEADS | {
        'sliding_window': 6, 'layer_types': windows.SLIDING}})
