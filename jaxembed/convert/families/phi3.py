"""Phi-3 (Abdin et al. 2024, arXiv 2404.14219): Llama with fused projections."""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import LAYERS, Row, linear


def _read(hf: Fields) -> dict[str, Any]:
  # Its older names of longrope.
  old_names = {'su': 'longrope', 'yarn': 'longrope'}
  return decoder.read(hf, rope_names=old_names) | windows.read(
      hf.get('sliding_window', 0), ())


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  """q, k, v lie in one matrix, and gate and up in another."""
  theirs, ours = 'layers.{l}.', LAYERS
  yield Row('embed_tokens.weight', ('backbone/embed/token',))
  yield from linear(f'{theirs}self_attn.o_proj', False, f'{ours}attn/o')
  yield from linear(f'{theirs}self_attn.qkv_proj', False,
                    *(f'{ours}attn/{x}' for x in 'qkv'))
  yield from linear(f'{theirs}mlp.gate_up_proj', False,
                    f'{ours}mlp/gate', f'{ours}mlp/up')
  yield from linear(f'{theirs}mlp.down_proj', False, f'{ours}mlp/down')
  yield from decoder.norms(cfg)


_LONGROPE = {'rope_type': 'longrope', 'rope_theta': 10000.0,
             'short_factor': [1.0, 1.1, 1.2, 1.4], 'long_factor': [1.0, 2.0, 3.0, 5.0],
             'original_max_position_embeddings': 32}

PHI3 = Family(
    architecture='Phi3Model', read=_read, write=decoder.write, rows=_rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'rms_norm_eps': 1e-5},
    cases={
        'Phi-3': SMALL_DECODER,
        'Phi-3, longrope': SMALL_DECODER | {
            'rope_parameters': _LONGROPE, 'original_max_position_embeddings': 32},
    })
