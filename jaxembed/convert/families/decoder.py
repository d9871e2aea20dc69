"""The decoder that Llama and most later ones share: settings and rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import rope, sizes
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import LAYERS, Row, linear, norm

# Also where the decoder is a part of a larger model, of either layout of names:
# 'language_model.model.layers' and 'model.language_model.layers'.
PREFIXES = ('model.', 'language_model.', 'model.')
IGNORED = (r'^lm_head\.', r'^score\.', r'rotary_emb\.inv_freq$')


def read(hf: Fields, activation: tuple[str, str] = ('hidden_act', 'silu'),
         rope_names: Mapping[str, str] | None = None) -> dict[str, Any]:
  """Fields of BackboneConfig: sizes, rope, norm, activation; no biases or windows.

  Args:
    activation: its key and what its absence means.
    rope_names: the family's own names of rope scalings -> the usual ones.
  """
  return sizes.read(hf) | rope.read(hf, hf.data, rope_names) | {
      'norm_eps': hf.get('rms_norm_eps', 1e-6),
      'activation': hf.activation(*activation),
  }


def biases(hf: Fields) -> dict[str, bool]:
  """Whether the projections of attention have biases: all of them, or none."""
  bias = hf.get('attention_bias', False)
  return {'qkv_bias': bias, 'out_bias': bias}


def write(cfg: BackboneConfig, two_way: bool,
          own: Mapping[str, Any] | None = None,
          activation_key: str = 'hidden_act') -> dict[str, Any]:
  """Keys of config.json; `own` are the family's."""
  hf = sizes.write(cfg) | {
      'num_key_value_heads': cfg.num_kv_heads, 'head_dim': cfg.head_dim,
      'max_position_embeddings': cfg.max_positions, 'rms_norm_eps': cfg.norm_eps,
      activation_key: sizes.activation_to_hf(cfg),
      'tie_word_embeddings': False, 'use_cache': False, 'pad_token_id': 0,
      'attention_bias': cfg.out_bias, 'mlp_bias': cfg.ff_bias,
      'sliding_window': cfg.window or None,
      'rope_parameters': (rope.write_dual(cfg) if cfg.local_rope_theta
                          else rope.write(cfg)),
  } | dict(own or {})
  if cfg.rope_scaling and cfg.rope_scaling.kind == 'longrope':
    hf['original_max_position_embeddings'] = cfg.rope_scaling.original_positions
  if two_way:
    hf |= {'is_causal': False, 'use_bidirectional_attention': True}
  return hf


def rows(cfg: BackboneConfig) -> Iterator[Row]:
  """One matrix per projection."""
  theirs, ours = 'layers.{l}.', LAYERS
  yield Row('embed_tokens.weight', ('backbone/embed/token',))
  for x in 'qkv':
    yield from linear(f'{theirs}self_attn.{x}_proj', cfg.qkv_bias, f'{ours}attn/{x}')
  yield from linear(f'{theirs}self_attn.o_proj', cfg.out_bias, f'{ours}attn/o')
  if cfg.qk_norm:
    yield from norm(f'{theirs}self_attn.q_norm', f'{ours}attn/q_norm', cfg)
    yield from norm(f'{theirs}self_attn.k_norm', f'{ours}attn/k_norm', cfg)
  for x in ('gate', 'up', 'down'):
    yield from linear(f'{theirs}mlp.{x}_proj', cfg.ff_bias, f'{ours}mlp/{x}')
  yield from norms(cfg)


def norms(cfg: BackboneConfig) -> Iterator[Row]:
  """The norms of the layers and the last one."""
  names = {'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'mlp_norm'}
  if cfg.block in ('sandwich', 'behind'):
    names = {'input_layernorm': 'attn_norm',
             'post_attention_layernorm': 'attn_post_norm',
             'pre_feedforward_layernorm': 'mlp_norm',
             'post_feedforward_layernorm': 'mlp_post_norm'}
  if cfg.block == 'behind':
    names = {name: path for name, path in names.items() if name.startswith('post')}
  for name, path in names.items():
    yield from norm('layers.{l}.' + name, LAYERS + path, cfg)
  yield from norm('norm', 'backbone/norm', cfg)
