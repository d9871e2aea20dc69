"""Llama 2, 3 and 3.x (Touvron et al. 2023, arXiv 2307.09288)."""

from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL, SMALL_DECODER
from jaxembed.convert.fields import Fields


def _read(hf: Fields) -> dict[str, Any]:
  return decoder.read(hf) | decoder.biases(hf) | {'ff_bias': hf.get('mlp_bias', False)}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {'layer_types': windows.layer_types_to_hf(cfg)})


_LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 500000.0, 'factor': 8.0,
           'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
           'original_max_position_embeddings': 16}
_LINEAR = {'rope_type': 'linear', 'rope_theta': 1e4, 'factor': 4.0}

LLAMA = Family(
    architecture='LlamaModel', read=_read, write=_write, rows=decoder.rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    cases={
        'Llama 3.x': SMALL_DECODER | {'rope_parameters': _LLAMA3},
        'Llama 2': SMALL | {'pad_token_id': 0},
        'Llama, linear rope': SMALL_DECODER | {'rope_parameters': _LINEAR},
        'Llama, biases': SMALL_DECODER | {'attention_bias': True, 'mlp_bias': True},
    })
