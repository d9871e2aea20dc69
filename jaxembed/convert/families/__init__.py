"""Backbone families by model_type: how their checkpoints are read and written.

To add one: its file here, its line in FAMILIES, its row in models.presets.FEATURES.
"""

from jaxembed.convert.families import (
  bert,
  distilbert,
  electra,
  gemma,
  granite,
  llama,
  mistral,
  modernbert,
  mpnet,
  olmo,
  phi,
  phi3,
  qwen,
  roberta,
  smollm3,
)
from jaxembed.convert.families.family import Family

FAMILIES: dict[str, Family] = {
    'mistral': mistral.MISTRAL,
    'ministral': mistral.MINISTRAL,
    'ministral3': mistral.MINISTRAL3,
    'llama': llama.LLAMA,
    'qwen2': qwen.QWEN2,
    'qwen3': qwen.QWEN3,
    'gemma': gemma.GEMMA,
    'gemma2': gemma.GEMMA2,
    'gemma3_text': gemma.GEMMA3_TEXT,
    'phi': phi.PHI,
    'phi3': phi3.PHI3,
    'granite': granite.GRANITE,
    'olmo': olmo.OLMO,
    'olmo2': olmo.OLMO2,
    'olmo3': olmo.OLMO3,
    'smollm3': smollm3.SMOLLM3,
    'bert': bert.BERT,
    'roberta': roberta.ROBERTA,
    'xlm-roberta': roberta.XLM_ROBERTA,
    'camembert': roberta.CAMEMBERT,
    'distilbert': distilbert.DISTILBERT,
    'electra': electra.ELECTRA,
    'mpnet': mpnet.MPNET,
    'modernbert': modernbert.MODERNBERT,
}
