"""Training data pipeline on the host: files to batches, in numpy.

A row becomes an Example (records), its source a sequence of them (sources), the sources
of a stage a Mixture, opened once; sampling says which rows make up a step, choice
what of them; tokenise and collate make a PairBatch, or with pack a PackedPairs whose
texts share rows.
"""

from jaxembed.data.beir import Retrieval, ScoredPairs
from jaxembed.data.eos import append_token, with_token
from jaxembed.data.feed import BatchInfo, batches
from jaxembed.data.fingerprint import fingerprint
from jaxembed.data.mixture import Mixture, open_mixture, open_stages
from jaxembed.data.pack import most_rows
from jaxembed.data.ragged import Ragged
from jaxembed.data.records import BadRow, Example, Passage, text_id
from jaxembed.data.sources import load
from jaxembed.data.tokenise import Tokenizer

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
