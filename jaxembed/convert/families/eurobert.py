"""EuroBERT (Boizard et al. 2025, arXiv 2503.05500): Llama that sees both directions."""

import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, llama
from jaxembed.convert.families.sizes import SMALL_DECODER
from jaxembed.convert.fields import Fields


def _read(hf: Fields) -> dict[str, Any]:
  return llama.LLAMA.read(hf) | {'norm_eps': hf.get('rms_norm_eps', 1e-5)}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way=False)


EUROBERT = dataclasses.replace(
    llama.LLAMA, architecture='EuroBertModel', read=_read, write=_write,
    cases={'EuroBERT': SMALL_DECODER})
