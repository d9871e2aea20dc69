"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT's body; the discriminator is the
model, and embeddings as wide as the layers are the ones that are read."""

import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert
from jaxembed.convert.families.family import ONLY
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields, UnsupportedModel


def _read(hf: Fields) -> dict[str, Any]:
  fields = bert.read(hf)
  width = hf.whole('embedding_size', 128, 1)
  if width != fields['dim']:
    raise UnsupportedModel(
        f'config.json: embedding_size={width} is not supported: it must be hidden_size '
        f'{fields["dim"]} (as in the base and large models), because the projection '
        'between the two is not computed')
  return fields


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return bert.write(cfg, two_way) | {'embedding_size': cfg.dim}


ELECTRA = dataclasses.replace(
    bert.BERT, architecture='ElectraModel', read=_read, write=_write,
    prefixes=('electra.',), pooler=False,
    ignored=(*bert.IGNORED, r'^(discriminator|generator)_(predictions|lm_head)\.',
             r'^(qa_outputs|sequence_summary)\.'),
    only={key: value for key, value in ONLY.items() if key != 'embedding_size'},
    cases={'ELECTRA': SMALL | {'embedding_size': 32}})
