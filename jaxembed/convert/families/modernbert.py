"""ModernBERT (Warner et al. 2024, arXiv 2412.13663)."""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import rope, sizes, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  every = hf.whole('global_attn_every_n_layers', 3, 1)
  half = hf.whole('local_attention', 128, 1) // 2
  bias, ff_bias = hf.get('attention_bias', False), hf.get('mlp_bias', False)
  return sizes.read(hf) | {
      'norm_eps': hf.number('norm_eps', 1e-5),
      'norm_bias': hf.flag('norm_bias', False),
      'activation': hf.activation('hidden_activation', 'gelu'),
      'qkv_bias': bias, 'out_bias': bias, 'ff_bias': ff_bias,
      'window': half + 1, 'two_way_window': half + 1,
      'windowed_layers': windows.layer_types(hf, half, lambda i: i % every != 0),
  } | rope.read_dual(hf, ('global_rope_theta', 160000.0), ('local_rope_theta', 10000.0))


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return sizes.write(cfg) | {
      'max_position_embeddings': cfg.max_positions, 'norm_eps': cfg.norm_eps,
      'norm_bias': cfg.norm_bias, 'attention_bias': cfg.qkv_bias,
      'mlp_bias': cfg.ff_bias, 'local_attention': 2 * (cfg.window - 1),
      'hidden_activation': sizes.activation_to_hf(cfg),
      'layer_types': windows.layer_types_to_hf(cfg), 'pad_token_id': 0,
      'rope_parameters': rope.write_dual(cfg),
  }


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'layers.{l}.', LAYERS
  yield Row('embeddings.tok_embeddings.weight', ('backbone/embed/token',))
  yield from norm('embeddings.norm', 'backbone/embed/norm', cfg)
  # Layer 0 reads the normalised embeddings as they are.
  yield from norm(f'{theirs}attn_norm', f'{ours}attn_norm', cfg, skip_layers=(0,))
  yield from linear(f'{theirs}attn.Wqkv', cfg.qkv_bias,
                    *(f'{ours}attn/{x}' for x in 'qkv'))
  yield from linear(f'{theirs}attn.Wo', cfg.out_bias, f'{ours}attn/o')
  yield from norm(f'{theirs}mlp_norm', f'{ours}mlp_norm', cfg)
  yield from linear(f'{theirs}mlp.Wi', cfg.ff_bias, f'{ours}mlp/gate', f'{ours}mlp/up')
  yield from linear(f'{theirs}mlp.Wo', cfg.ff_bias, f'{ours}mlp/down')
  yield from norm('final_norm', 'backbone/norm', cfg)


MODERNBERT = Family(
    architecture='ModernBertModel', read=_read, write=_write, rows=_rows,
    prefixes=('model.',), ignored=(r'^head\.', r'^decoder\.', r'^classifier\.'),
    cases={'ModernBERT': SMALL | {
        'local_attention': 10, 'global_attn_every_n_layers': 2, 'pad_token_id': 0}})
