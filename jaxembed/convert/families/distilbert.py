"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT without token types."""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import sizes
from jaxembed.convert.families.family import Family
from jaxembed.convert.fields import MOST_LAYERS, Fields
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  dim, heads = hf.size('dim'), hf.size('n_heads')
  return {
      'vocab_size': hf.need('vocab_size'), 'dim': dim,
      'ff_dim': hf.size('hidden_dim'), 'num_layers': hf.size('n_layers', MOST_LAYERS),
      'num_heads': heads, 'num_kv_heads': heads, 'head_dim': dim // heads,
      'max_positions': hf.need('max_position_embeddings'),
      'activation': hf.activation('activation', 'gelu')}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return {
      'vocab_size': cfg.vocab_size, 'dim': cfg.dim, 'hidden_dim': cfg.ff_dim,
      'n_layers': cfg.num_layers, 'n_heads': cfg.num_heads,
      'max_position_embeddings': cfg.max_positions,
      'activation': sizes.activation_to_hf(cfg), 'pad_token_id': 0}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'transformer.layer.{l}.', LAYERS
  yield Row('embeddings.word_embeddings.weight', ('backbone/embed/token',))
  yield Row('embeddings.position_embeddings.weight', ('backbone/embed/position',))
  yield from norm('embeddings.LayerNorm', 'backbone/embed/norm', cfg)
  for x in 'qkv':
    yield from linear(f'{theirs}attention.{x}_lin', True, f'{ours}attn/{x}')
  yield from linear(f'{theirs}attention.out_lin', True, f'{ours}attn/o')
  yield from norm(f'{theirs}sa_layer_norm', f'{ours}attn_norm', cfg)
  yield from linear(f'{theirs}ffn.lin1', True, f'{ours}mlp/up')
  yield from linear(f'{theirs}ffn.lin2', True, f'{ours}mlp/down')
  yield from norm(f'{theirs}output_layer_norm', f'{ours}mlp_norm', cfg)


DISTILBERT = Family(
    architecture='DistilBertModel', read=_read, write=_write, rows=_rows,
    prefixes=('distilbert.',),
    ignored=(r'^vocab_(transform|layer_norm|projector)\.', r'^(pre_)?classifier\.',
             r'^qa_outputs\.', r'position_ids$'),
    cases={'DistilBERT': {
        'vocab_size': 99, 'dim': 32, 'hidden_dim': 48, 'n_layers': 3, 'n_heads': 4,
        'max_position_embeddings': 64}})
