"""A table of token vectors alone, without layers: what StaticEmbedding is.

Its folders describe it by its tensors (convert/static_embedding.py); config.json is
what a run writes beside its checkpoints.
"""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families.family import Family
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import Row


def _read(hf: Fields) -> dict[str, Any]:
  return {'vocab_size': hf.need('vocab_size'), 'dim': hf.need('hidden_size'),
          'ff_dim': 1, 'num_layers': 0, 'num_heads': 1, 'num_kv_heads': 1,
          'head_dim': 1, 'max_positions': hf.need('max_position_embeddings')}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return {'vocab_size': cfg.vocab_size, 'hidden_size': cfg.dim,
          'max_position_embeddings': cfg.max_positions}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  yield Row('embedding.weight', ('backbone/embed/token',))


STATIC = Family(architecture='', read=_read, write=_write, rows=_rows, prefixes=(),
                ignored=(), cases={})
