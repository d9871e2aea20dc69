"""ALBERT (Lan et al. 2020, arXiv 1909.11942): BERT whose layers share their parameters,
with embeddings narrower than they."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert
from jaxembed.convert.families.family import ONLY_BUT_WIDTH
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  fields = bert.read(hf)
  groups, layers = hf.whole('num_hidden_groups', 1, 1), fields['num_layers']
  if layers % groups:
    raise UnsupportedModel(
        f'config.json: num_hidden_groups={groups} is not supported for '
        f'num_hidden_layers={layers}, which it does not divide')
  return fields | {
      'activation': hf.activation('hidden_act', 'gelu_new'), 'own_layers': groups,
      'embed_dim': hf.whole('embedding_size', 128, 1, 2**20)}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return bert.write(cfg, two_way) | {
      'embedding_size': cfg.embed_dim, 'num_hidden_groups': cfg.own_layers}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs = 'encoder.albert_layer_groups.{l}.albert_layers.0.'
  yield from bert.embeddings(cfg)
  yield from linear('encoder.embedding_hidden_mapping_in', True,
                    'backbone/embed/project')
  for name, x in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('dense', 'o')):
    yield from linear(f'{theirs}attention.{name}', True, f'{LAYERS}attn/{x}')
  yield from norm(f'{theirs}attention.LayerNorm', f'{LAYERS}attn_norm', cfg)
  yield from linear(f'{theirs}ffn', True, f'{LAYERS}mlp/up')
  yield from linear(f'{theirs}ffn_output', True, f'{LAYERS}mlp/down')
  yield from norm(f'{theirs}full_layer_layer_norm', f'{LAYERS}mlp_norm', cfg)


ALBERT = dataclasses.replace(
    bert.BERT, architecture='AlbertModel', read=_read, write=_write, rows=_rows,
    prefixes=('albert.',), ignored=(*bert.IGNORED, r'^(predictions|sop_classifier)\.'),
    only=ONLY_BUT_WIDTH | {'inner_group_num': 1},
    cases={'ALBERT': SMALL | {'embedding_size': 16},
           'ALBERT, two groups': SMALL | {
               'embedding_size': 32, 'num_hidden_layers': 4, 'num_hidden_groups': 2}})
