"""RoBERTa (arXiv 1907.11692), XLM-R (1911.02116) and CamemBERT (1911.03894): BERT with
positions counted from the padding id; XLM-R XL (2105.00572) has its norms before."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  fields = bert.read(hf)
  offset = hf.get('pad_token_id', 1) + 1
  return fields | {'position_offset': offset,
                   'max_positions': fields['max_positions'] - offset}


def _rows_of_xl(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'encoder.layer.{l}.', LAYERS
  yield from bert.embeddings(cfg)
  for x, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    yield from linear(f'{theirs}attention.self.{name}', True, f'{ours}attn/{x}')
  yield from linear(f'{theirs}attention.output.dense', True, f'{ours}attn/o')
  yield from norm(f'{theirs}attention.self_attn_layer_norm', f'{ours}attn_norm', cfg)
  yield from linear(f'{theirs}intermediate.dense', True, f'{ours}mlp/up')
  yield from linear(f'{theirs}output.dense', True, f'{ours}mlp/down')
  yield from norm(f'{theirs}LayerNorm', f'{ours}mlp_norm', cfg)
  yield from norm('encoder.LayerNorm', 'backbone/norm', cfg)


_SMALL = SMALL | {'type_vocab_size': 1}

ROBERTA = dataclasses.replace(
    bert.BERT, architecture='RobertaModel', read=_read, prefixes=('roberta.',),
    cases={'RoBERTa': _SMALL})
XLM_ROBERTA = dataclasses.replace(
    ROBERTA, architecture='XLMRobertaModel', cases={'XLM-R': _SMALL})
CAMEMBERT = dataclasses.replace(
    ROBERTA, architecture='CamembertModel', cases={'CamemBERT': _SMALL})
XLM_ROBERTA_XL = dataclasses.replace(
    ROBERTA, architecture='XLMRobertaXLModel', rows=_rows_of_xl,
    defaults={'layer_norm_eps': 1e-5, 'type_vocab_size': 1},
    cases={'XLM-R XL': _SMALL})
