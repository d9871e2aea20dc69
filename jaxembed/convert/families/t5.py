"""Encoders of T5 (Raffel et al. 2020, arXiv 1910.10683), mT5 (2010.11934) and UMT5
(2304.09151), as sentence-t5 (2108.08877) and gtr-t5 (2112.07899) use them.

Of a checkpoint with a decoder the encoder alone is read.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import sizes
from jaxembed.convert.families.family import Family
from jaxembed.convert.fields import MOST_LAYERS, Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm

# It has no positions that end; texts are cut where the tokenizer says.
_ENDLESS = 2**20


def _read(hf: Fields) -> dict[str, Any]:
  kind = hf.text('feed_forward_proj', 'relu' if hf.family == 't5' else 'gated-gelu')
  gated, _, name = kind.rpartition('-')
  if gated not in ('', 'gated'):
    raise UnsupportedModel(f'config.json: feed_forward_proj={kind!r:.80} is neither an '
                           'activation nor one behind gated-')
  name = 'gelu_new' if kind == 'gated-gelu' else name
  named = Fields({'dense_act_fn': name} | {
      k: v for k, v in hf.data.items() if v is not None}, hf.file)
  heads = hf.size('num_heads')
  return {
      'vocab_size': hf.need('vocab_size'), 'dim': hf.size('d_model'),
      'ff_dim': hf.size('d_ff'), 'num_layers': hf.size('num_layers', MOST_LAYERS),
      'num_heads': heads, 'num_kv_heads': heads, 'head_dim': hf.size('d_kv'),
      'max_positions': _ENDLESS,
      'norm_eps': hf.number('layer_norm_epsilon', 1e-6),
      'gated': hf.flag('is_gated_act', bool(gated)),
      'activation': named.activation('dense_act_fn', name),
      'relative_buckets': hf.whole('relative_attention_num_buckets', 32, 4),
      'relative_distance': hf.whole('relative_attention_max_distance', 128, 2)}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  name = sizes.activation_to_hf(cfg)
  name = 'gelu_new' if name == 'gelu_pytorch_tanh' else name
  kind = f'gated-{name}' if cfg.gated else name
  return {
      'vocab_size': cfg.vocab_size, 'd_model': cfg.dim, 'd_ff': cfg.ff_dim,
      'num_layers': cfg.num_layers, 'num_heads': cfg.num_heads, 'd_kv': cfg.head_dim,
      'layer_norm_epsilon': cfg.norm_eps,
      'feed_forward_proj': kind, 'dense_act_fn': name, 'is_gated_act': cfg.gated,
      'relative_attention_num_buckets': cfg.relative_buckets,
      'relative_attention_max_distance': cfg.relative_distance,
      'is_encoder_decoder': False, 'use_cache': False, 'pad_token_id': 0}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  attention, mlp = (f'encoder.block.{{l}}.layer.{i}.' for i in (0, 1))
  bias = 'SelfAttention.relative_attention_bias.weight'
  yield Row('shared.weight', ('backbone/embed/token',))
  for x in 'qkvo':
    yield from linear(f'{attention}SelfAttention.{x}', False, f'{LAYERS}attn/{x}')
  if cfg.relative_per_layer:
    yield Row(attention + bias, (f'{LAYERS}attn/relative',))
  yield from norm(f'{attention}layer_norm', f'{LAYERS}attn_norm', cfg)
  names = {'wi_0': 'gate', 'wi_1': 'up'} if cfg.gated else {'wi': 'up'}
  for name, ours in (names | {'wo': 'down'}).items():
    yield from linear(f'{mlp}DenseReluDense.{name}', False, f'{LAYERS}mlp/{ours}')
  yield from norm(f'{mlp}layer_norm', f'{LAYERS}mlp_norm', cfg)
  if not cfg.relative_per_layer:
    yield Row(f'encoder.block.0.layer.0.{bias}', ('backbone/relative',))
  yield from norm('encoder.final_layer_norm', 'backbone/norm', cfg)


_SMALL = {'vocab_size': 99, 'd_model': 32, 'd_ff': 48, 'num_layers': 3, 'num_heads': 4,
          'd_kv': 16, 'relative_attention_num_buckets': 8,
          'relative_attention_max_distance': 12}

T5 = Family(
    architecture='T5EncoderModel', read=_read, write=_write, rows=_rows,
    prefixes=('transformer.',), ignored=(
        r'^decoder\.', r'^lm_head\.', r'^encoder\.embed_tokens\.weight$',
        r'^(classifier|qa_outputs|classification_head)\.'),
    cases={'T5': _SMALL,
           'T5 1.1, Flan': _SMALL | {'feed_forward_proj': 'gated-gelu'}})
MT5 = dataclasses.replace(
    T5, architecture='MT5EncoderModel', cases={'mT5': _SMALL})
UMT5 = dataclasses.replace(
    T5, architecture='UMT5EncoderModel', cases={'UMT5': _SMALL})
