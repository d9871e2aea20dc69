"""GTE's encoder (Zhang et al. 2024, mGTE, arXiv 2407.19669): BERT with rotary positions
and a gated feed-forward, as gte-*-en-v1.5, gte-multilingual-base and
snowflake-arctic-embed-m-v2.0 have it.

The code in those folders calls it `new`, transformers `gte`.
"""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig, RopeScaling
from jaxembed.convert.families import bert, rope
from jaxembed.convert.families.family import ONLY, Family
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  older = hf.family == 'new'
  kinds = hf.get('type_vocab_size', 0 if older else 1)
  theta = 10000.0 if older else 160000.0
  return bert.read(hf) | _rope(hf, theta) | {'type_vocab_size': kinds}


def _rope(hf: Fields, theta: float) -> dict[str, Any]:
  """Rotary positions; ntk, which transformers lacks, as the linear scaling it is.

  Its frequencies are those of `factor` times the base, divided by factor^(2/width).
  """
  scaling = hf.within('rope_scaling')
  if (scaling.get('rope_type') or scaling.get('type')) != 'ntk':
    return rope.read(hf, hf.data, theta=theta)
  if scaling.data.get('mixed_b') is not None:
    raise UnsupportedModel(f'{scaling.file}: mixed_b is not supported')
  factor = float(scaling.need('factor'))
  width = hf.need('hidden_size') // hf.need('num_attention_heads')
  return {'rope_theta': factor * float(hf.get('rope_theta', theta)),
          'rope_scaling': RopeScaling(kind='linear', factor=factor ** (2 / width))}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return bert.write(cfg, two_way) | {
      'type_vocab_size': cfg.type_vocab_size, 'rope_parameters': rope.write(cfg)}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'encoder.layer.{l}.', LAYERS
  yield from bert.embeddings(cfg)
  yield from linear(f'{theirs}attention.qkv_proj', True,
                    *(f'{ours}attn/{x}' for x in 'qkv'))
  yield from linear(f'{theirs}attention.o_proj', True, f'{ours}attn/o')
  yield from linear(f'{theirs}mlp.up_gate_proj', False, f'{ours}mlp/up',
                    f'{ours}mlp/gate')
  yield from linear(f'{theirs}mlp.down_proj', True, f'{ours}mlp/down')
  yield from norm(f'{theirs}attn_ln', f'{ours}attn_norm', cfg)
  yield from norm(f'{theirs}mlp_ln', f'{ours}mlp_norm', cfg)


GTE = Family(
    architecture='GteModel', read=_read, write=_write, rows=_rows,
    prefixes=('new.', 'gte.'), ignored=bert.IGNORED,
    only={**ONLY, 'position_embedding_type': 'rope', 'logn_attention_scale': False,
          'layer_norm_type': 'layer_norm'},
    cases={'GTE': SMALL}, older_keys=('pack_qkv', 'rope_scaling'))
