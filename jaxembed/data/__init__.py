"""Training data pipeline on the host: files to batches, in numpy.

A row becomes an Example (records), its source a sequence of them (sources), the sources
of a stage a Mixture, opened once; sampling says which rows make up a step, choice
what of them; tokenise and collate make a PairBatch, or with pack a PackedPairs whose
texts share rows.
"""

import importlib
from typing import TYPE_CHECKING

from jaxembed.data.fingerprint import fingerprint
from jaxembed.data.records import BadRow, Example, Passage, text_id
from jaxembed.data.sources import load

# Public name -> its module; imported when first asked for, so that reading rows loads
# neither JAX nor a tokenizer.
_PUBLIC = {
    'BatchInfo': 'feed',
    'Mixture': 'mixture',
    'Ragged': 'ragged',
    'Retrieval': 'beir',
    'ScoredPairs': 'beir',
    'Tokenizer': 'tokenise',
    'append_token': 'eos',
    'batches': 'feed',
    'most_rows': 'pack',
    'open_mixture': 'mixture',
    'open_stages': 'mixture',
    'with_token': 'eos',
}
__all__ = [
    'BadRow',
    'BatchInfo',
    'Example',
    'Mixture',
    'Passage',
    'Ragged',
    'Retrieval',
    'ScoredPairs',
    'Tokenizer',
    'append_token',
    'batches',
    'fingerprint',
    'load',
    'most_rows',
    'open_mixture',
    'open_stages',
    'text_id',
    'with_token',
]

if TYPE_CHECKING:
  from jaxembed.data.beir import Retrieval, ScoredPairs
  from jaxembed.data.eos import append_token, with_token
  from jaxembed.data.feed import BatchInfo, batches
  from jaxembed.data.mixture import Mixture, open_mixture, open_stages
  from jaxembed.data.pack import most_rows
  from jaxembed.data.ragged import Ragged
  from jaxembed.data.tokenise import Tokenizer
else:
  def __getattr__(name: str):
    if name in _PUBLIC:
      return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    try:  # a module of the package: data.feed, data.pack
      if not name.startswith('_'):
        return importlib.import_module(f'{__name__}.{name}')
    except ModuleNotFoundError as error:
      if error.name != f'{__name__}.{name}':
        raise
    raise AttributeError(f'jaxembed.data has no {name!r}; it has {", ".join(__all__)}')
