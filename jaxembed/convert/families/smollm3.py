"""SmolLM3 (Hugging Face 2025): Llama, of which every fourth layer has no positions."""

from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, llama, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER
from jaxembed.convert.fields import Fields, UnsupportedModel


def _read(hf: Fields) -> dict[str, Any]:
  turned = _turned(hf)
  windowed, window = hf.flag('use_sliding_window', False), hf.get('sliding_window', 0)
  layers = windows.layer_types(hf, window, lambda i: windowed and not turned[i])
  return llama.LLAMA.read(hf) | windows.read(window, layers) | {
      'rope_layers': () if all(turned) else turned}


def _turned(hf: Fields) -> tuple[bool, ...]:
  """Which layers have rotary positions: ones of `no_rope_layers`, or a rule."""
  count = hf.need('num_hidden_layers')
  every = hf.whole('no_rope_layer_interval', 4, 1)
  marks = hf.marks('no_rope_layers')
  if marks is None:
    return tuple((i + 1) % every != 0 for i in range(count))
  if len(marks) < count:
    raise UnsupportedModel(f'config.json: no_rope_layers has {len(marks)} entries for '
                           f'{count} layers')
  return tuple(map(bool, marks[:count]))


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  turned = cfg.rope_layers or (True,) * cfg.num_layers
  return decoder.write(cfg, two_way, {
      'no_rope_layers': list(map(int, turned)),
      'use_sliding_window': bool(cfg.window),
      'layer_types': windows.layer_types_to_hf(cfg)})


SMOLLM3 = Family(
    architecture='SmolLM3Model', read=_read, write=_write, rows=decoder.rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'num_key_value_heads': 4, 'rope_theta': 2e6},
    cases={
        'SmolLM3': SMALL_DECODER | {'no_rope_layers': [1, 0, 1]},
        'SmolLM3, sliding window': SMALL_DECODER | {
            'no_rope_layers': [0, 1, 0], 'use_sliding_window': True,
            'sliding_window': 6, 'mlp_bias': True},
    })
