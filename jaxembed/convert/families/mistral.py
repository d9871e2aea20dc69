"""Mistral (Jiang et al. 2023, arXiv 2310.06825), Ministral and Ministral 3."""

import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, rope, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER, SMALL_WIDE_HEADS
from jaxembed.convert.fields import Fields, UnsupportedModel


def _read(hf: Fields) -> dict[str, Any]:
  window = hf.get('sliding_window', 0)
  return decoder.read(hf) | windows.read(
      window, windows.layer_types(hf, window, lambda i: True))


def _write_mixed(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {'layer_types': windows.layer_types_to_hf(cfg)})


def _read_ministral3(hf: Fields) -> dict[str, Any]:
  newer, older = hf.object('rope_parameters'), hf.object('rope_scaling')
  # transformers prefers the older name where both are there.
  hf = Fields({**hf.data, 'rope_parameters': older or newer or _YARN}, hf.file)
  turned = hf.within('rope_parameters')
  growth = turned.amount('llama_4_scaling_beta')
  if growth is None:
    raise UnsupportedModel(f'{turned.file} lacks \'llama_4_scaling_beta\'')
  return decoder.read(hf) | windows.read(hf.get('sliding_window', 0), ()) | {
      'query_growth': float(growth),
      'query_growth_every': rope.original_positions(hf, turned)}


def _write_ministral3(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {'rope_parameters': rope.write(cfg) | {
      'llama_4_scaling_beta': cfg.query_growth,
      'original_max_position_embeddings': cfg.query_growth_every}})


# What transformers takes where config.json has no rope_parameters.
_YARN = {'rope_type': 'yarn', 'rope_theta': 1e6, 'factor': 16.0, 'beta_fast': 32.0,
         'beta_slow': 1.0, 'mscale': 1.0, 'mscale_all_dim': 1.0,
         'original_max_position_embeddings': 16384, 'llama_4_scaling_beta': 0.1}

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
MINISTRAL3 = dataclasses.replace(
    MISTRAL, architecture='Ministral3Model', read=_read_ministral3,
    write=_write_ministral3,
    defaults={'num_key_value_heads': 8, 'head_dim': 128, 'rms_norm_eps': 1e-5},
    cases={
        'Ministral 3': SMALL_WIDE_HEADS | {'rope_parameters': _YARN | {
            'original_max_position_embeddings': 8}},
        'Ministral 3, sliding window': SMALL_WIDE_HEADS | {
            'sliding_window': 6, 'rope_parameters': {
                'rope_type': 'default', 'rope_theta': 1e4, 'llama_4_scaling_beta': 0.5,
                'original_max_position_embeddings': 4}},
    })
