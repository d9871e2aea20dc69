"""BERT (Devlin et al. 2019, arXiv 1810.04805), whose body other encoders share."""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import sizes
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import LAYERS, Row, linear, norm

IGNORED = (r'^pooler\.', r'^cls\.', r'^lm_head\.', r'^classifier\.',
           r'position_ids$', r'token_type_ids$')


def read(hf: Fields) -> dict[str, Any]:
  """Fields of BackboneConfig."""
  return sizes.read(hf) | {
      'norm_eps': hf.get('layer_norm_eps', 1e-12),
      'activation': hf.activation('hidden_act', 'gelu'),
      'type_vocab_size': hf.get('type_vocab_size', 2),
  }


def write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  """Keys of config.json."""
  hf = sizes.write(cfg) | {
      'max_position_embeddings': cfg.max_positions + cfg.position_offset,
      'layer_norm_eps': cfg.norm_eps,
      'hidden_act': sizes.activation_to_hf(cfg),
      'pad_token_id': max(cfg.position_offset - 1, 0)}
  if cfg.type_vocab_size:
    hf['type_vocab_size'] = cfg.type_vocab_size
  return hf


def rows(cfg: BackboneConfig) -> Iterator[Row]:
  """Embeddings, attention, feed-forward."""
  theirs, ours = 'encoder.layer.{l}.', LAYERS
  yield from embeddings(cfg)
  for x, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    yield from linear(f'{theirs}attention.self.{name}', True, f'{ours}attn/{x}')
  yield from linear(f'{theirs}attention.output.dense', True, f'{ours}attn/o')
  yield from norm(f'{theirs}attention.output.LayerNorm', f'{ours}attn_norm', cfg)
  yield from feed_forward(cfg)


def embeddings(cfg: BackboneConfig, norm_name: str = 'embeddings.LayerNorm'
               ) -> Iterator[Row]:
  """Token, position and, where there are some, token type vectors; their norm."""
  yield Row('embeddings.word_embeddings.weight', ('backbone/embed/token',))
  if cfg.position == 'learned':
    yield Row('embeddings.position_embeddings.weight', ('backbone/embed/position',))
  if cfg.type_vocab_size:
    yield Row('embeddings.token_type_embeddings.weight', ('backbone/embed/type',))
  if cfg.embed_norm:
    yield from norm(norm_name, 'backbone/embed/norm', cfg)


def feed_forward(cfg: BackboneConfig) -> Iterator[Row]:
  """Two matrices and the norm behind them."""
  theirs, ours = 'encoder.layer.{l}.', LAYERS
  yield from linear(f'{theirs}intermediate.dense', True, f'{ours}mlp/up')
  yield from linear(f'{theirs}output.dense', True, f'{ours}mlp/down')
  yield from norm(f'{theirs}output.LayerNorm', f'{ours}mlp_norm', cfg)


BERT = Family(
    architecture='BertModel', read=read, write=write, rows=rows, prefixes=('bert.',),
    ignored=IGNORED, pooler=True, cases={'BERT': SMALL})
