"""Encoder of jina-embeddings-v3 (Sturua et al. 2024, arXiv 2409.10173): XLM-R with
rotary positions."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert, rope
from jaxembed.convert.families.family import ONLY
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  theta = float(hf.number('rotary_emb_base', 20000.0))  # as its own code calls it
  return bert.read(hf) | rope.read(hf, hf.data, theta=theta) | {
      'norm_eps': hf.get('layer_norm_eps', 1e-5),
      'type_vocab_size': hf.get('type_vocab_size', 1)}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return bert.write(cfg, two_way) | {'rope_parameters': rope.write(cfg)}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'encoder.layers.{l}.', LAYERS
  yield from bert.embeddings(cfg, 'emb_ln')
  yield from linear(f'{theirs}mixer.Wqkv', True, *(f'{ours}attn/{x}' for x in 'qkv'))
  yield from linear(f'{theirs}mixer.out_proj', True, f'{ours}attn/o')
  yield from linear(f'{theirs}mlp.fc1', True, f'{ours}mlp/up')
  yield from linear(f'{theirs}mlp.fc2', True, f'{ours}mlp/down')
  yield from norm(f'{theirs}norm1', f'{ours}attn_norm', cfg)
  yield from norm(f'{theirs}norm2', f'{ours}mlp_norm', cfg)


JINA_V3 = dataclasses.replace(
    bert.BERT, architecture='JinaEmbeddingsV3Model', read=_read, write=_write,
    rows=_rows, prefixes=('roberta.',),
    older_keys=('lora_adaptations', 'rotary_emb_base'),
    only={**ONLY, 'position_embedding_type': 'rotary'},
    cases={'jina-embeddings-v3': SMALL})
