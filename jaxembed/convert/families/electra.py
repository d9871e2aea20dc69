"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT's body, whose embeddings may be
narrower than its layers; the discriminator is the model."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert
from jaxembed.convert.families.family import ONLY_BUT_WIDTH
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import Row, linear


def _read(hf: Fields) -> dict[str, Any]:
  fields = bert.read(hf)
  width = hf.whole('embedding_size', 128, 1)
  return fields | {'embed_dim': 0 if width == fields['dim'] else width}


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return bert.write(cfg, two_way) | {'embedding_size': cfg.embed_dim or cfg.dim}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  yield from bert.rows(cfg)
  if cfg.embed_dim:
    yield from linear('embeddings_project', True, 'backbone/embed/project')


ELECTRA = dataclasses.replace(
    bert.BERT, architecture='ElectraModel', read=_read, write=_write, rows=_rows,
    prefixes=('electra.',), pooler=False,
    ignored=(*bert.IGNORED, r'^(discriminator|generator)_(predictions|lm_head)\.',
             r'^(qa_outputs|sequence_summary)\.'),
    only=ONLY_BUT_WIDTH,
    cases={'ELECTRA': SMALL | {'embedding_size': 32},
           'ELECTRA small': SMALL | {'embedding_size': 16}})
