"""RoBERTa (arXiv 1907.11692), XLM-R (1911.02116) and CamemBERT (1911.03894): BERT with
positions counted from the padding id."""

import dataclasses
from typing import Any

from jaxembed.convert.families import bert
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields


def _read(hf: Fields) -> dict[str, Any]:
  fields = bert.read(hf)
  offset = hf.get('pad_token_id', 1) + 1
  return fields | {'position_offset': offset,
                   'max_positions': fields['max_positions'] - offset}


_SMALL = SMALL | {'type_vocab_size': 1}

ROBERTA = dataclasses.replace(
    bert.BERT, architecture='RobertaModel', read=_read, prefixes=('roberta.',),
    cases={'RoBERTa': _SMALL})
XLM_ROBERTA = dataclasses.replace(
    ROBERTA, architecture='XLMRobertaModel', cases={'XLM-R': _SMALL})
CAMEMBERT = dataclasses.replace(
    ROBERTA, architecture='CamembertModel', cases={'CamemBERT': _SMALL})
