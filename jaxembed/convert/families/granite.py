"""Granite 3 (IBM 2024): Llama with multipliers of embeddings, scores and sums."""

from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, llama
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER
from jaxembed.convert.fields import Fields

_MULTIPLIERS = {'embedding_multiplier': 'embed_scale',
                'attention_multiplier': 'query_scale',
                'residual_multiplier': 'residual_scale'}


def _read(hf: Fields) -> dict[str, Any]:
  return llama.LLAMA.read(hf) | {
      field: float(hf.number(key, 1.0)) for key, field in _MULTIPLIERS.items()}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {
      key: getattr(cfg, field) for key, field in _MULTIPLIERS.items()})


GRANITE = Family(
    architecture='GraniteModel', read=_read, write=_write, rows=decoder.rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    cases={'Granite': SMALL_DECODER | {
        'embedding_multiplier': 12.0, 'attention_multiplier': 0.2,
        'residual_multiplier': 0.22, 'logits_scaling': 16.0}})
