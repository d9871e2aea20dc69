"""JinaBERT (Günther et al. 2023, arXiv 2310.19923): BERT with ALiBi and a gated
feed-forward, as jina-embeddings-v2 has it; its code, Chinese, German and Spanish models
also normalise queries and keys, and add the input of a layer twice.

transformers lacks it: its code lies in the folders, under the model_type of BERT.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert
from jaxembed.convert.families.family import ONLY
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm

_KINDS = {'geglu': 'gelu', 'reglu': 'relu'}
# The repository of the code whose queries and keys are normalised.
_NORMED = 'jina-bert-v2-qk-post-norm'


def _read(hf: Fields) -> dict[str, Any]:
  kind = hf.text('feed_forward_type', 'original')
  if kind not in _KINDS:
    raise UnsupportedModel(f'{hf.file}: feed_forward_type={kind!r:.80} is not '
                           f'supported; known: {", ".join(_KINDS)}')
  code = f'{hf.data.get("auto_map")} {hf.data.get("_name_or_path")}'
  return bert.read(hf) | {'activation': _KINDS[kind], 'qk_norm': _NORMED in code,
                          'added_twice': _NORMED in code, 'qk_norm_heads': 'all'}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  code = _NORMED if cfg.qk_norm else 'jina-bert-implementation'
  kind = {ours: theirs for theirs, ours in _KINDS.items()}[cfg.activation]
  return bert.write(cfg, two_way) | {
      'model_type': 'bert', 'position_embedding_type': 'alibi',
      'feed_forward_type': kind, '_name_or_path': f'jinaai/{code}'}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'encoder.layer.{l}.', LAYERS
  yield from bert.embeddings(cfg)
  for x, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    yield from linear(f'{theirs}attention.self.{name}', True, f'{ours}attn/{x}')
  if cfg.qk_norm:
    for x in 'qk':
      yield from norm(f'{theirs}attention.self.layer_norm_{x}', f'{ours}attn/{x}_norm',
                      cfg)
  yield from linear(f'{theirs}attention.output.dense', True, f'{ours}attn/o')
  yield from norm(f'{theirs}attention.output.LayerNorm', f'{ours}attn_norm', cfg)
  gate, up = f'{ours}mlp/gate', f'{ours}mlp/up'
  if cfg.qk_norm:
    yield from norm(f'{theirs}layer_norm_1', f'{ours}attn_post_norm', cfg)
    yield from linear(f'{theirs}mlp.up_gated_layer', False, up, gate)
    yield from linear(f'{theirs}mlp.down_layer', True, f'{ours}mlp/down')
    yield from norm(f'{theirs}layer_norm_2', f'{ours}mlp_norm', cfg)
  else:
    yield from linear(f'{theirs}mlp.gated_layers', False, gate, up)
    yield from linear(f'{theirs}mlp.wo', True, f'{ours}mlp/down')
    yield from norm(f'{theirs}mlp.layernorm', f'{ours}mlp_norm', cfg)


JINA_BERT = dataclasses.replace(
    bert.BERT, architecture='', read=_read, write=_write, rows=_rows, cases={},
    only={**ONLY, 'position_embedding_type': 'alibi'})
