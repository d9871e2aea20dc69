"""MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa with T5's relative positions."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm


def _read(hf: Fields) -> dict[str, Any]:
  buckets = hf.whole('relative_attention_num_buckets', 32, 1)
  if buckets != 32:
    raise UnsupportedModel(
        f'config.json: relative_attention_num_buckets={buckets} is not supported: '
        'the reference implementation computes 32 whatever the field says')
  # transformers counts positions by id 1, whatever pad_token_id says.
  return bert.read(hf) | {'type_vocab_size': 0, 'position_offset': 2,
                          'max_positions': hf.need('max_position_embeddings') - 2}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return bert.write(cfg, two_way) | {
      'relative_attention_num_buckets': cfg.relative_buckets}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'encoder.layer.{l}.', LAYERS
  yield from bert.embeddings(cfg)
  for x in 'qkvo':
    yield from linear(f'{theirs}attention.attn.{x}', True, f'{ours}attn/{x}')
  yield from norm(f'{theirs}attention.LayerNorm', f'{ours}attn_norm', cfg)
  yield from bert.feed_forward(cfg)
  yield Row('encoder.relative_attention_bias.weight', ('backbone/relative',))


MPNET = dataclasses.replace(
    bert.BERT, architecture='MPNetModel', read=_read, write=_write, rows=_rows,
    prefixes=('mpnet.',), cases={'MPNet': SMALL})
