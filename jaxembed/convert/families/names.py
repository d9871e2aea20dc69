"""Names of families in config.json: a model_type, and what else stands for it.

Some models keep their code in their folder, under a model_type of their own or of
another model. Their weights are those of a family here; the code is never run.
"""

from collections.abc import Iterable, Mapping
import difflib
from typing import Any

from jaxembed.files.folder import short

# model_type of a folder with code -> the family whose layout its weights have.
ALIASES = {
    'new': 'gte',  # Alibaba-NLP/new-impl: gte-*-en-v1.5, gte-multilingual
}


def family_of(config: Mapping[str, Any]) -> str:
  """The family of a parsed config.json; any text where it is none that is known."""
  name = str(config.get('model_type'))
  if name == 'bert' and config.get('position_embedding_type') == 'alibi':
    return 'jina_bert'
  if name == 'xlm-roberta' and config.get('position_embedding_type') == 'rotary':
    return 'jina_embeddings_v3'
  return ALIASES.get(name, name)


def telling(config: Mapping[str, Any]) -> str:
  """That what the code of a folder computes is computed without it; '' of others."""
  name, family = str(config.get('model_type')), family_of(config)
  if not config.get('auto_map') or (name == family and 'n_embd' not in config):
    return ''
  return (f'config.json: the {family} of its published code is computed here; no code '
          'of a folder is run')


def unknown(name: Any, known: Iterable[str]) -> str:
  """That a model_type is not supported, the nearest one that is, and all of them."""
  known = sorted({*known, *ALIASES})
  near = difflib.get_close_matches(str(name).lower(), known, 1, 0.65)
  nearest = f'; the nearest that is: {near[0]}' if near else ''
  return (f'model_type {short(name)} is not supported{nearest}; known: '
          f'{", ".join(known)}')
