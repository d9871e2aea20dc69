"""Vectors on disk: memory-mapped shards, their ids, and what made them.

    manifest.json        rows, width, stored type, and the work: model, input, settings
    shard-00000.npy      rows as they are stored (store/codes.py); numpy opens it
    shard-00000.ids.npy  the ids of these rows in UTF-8, where rows have ids
    shard-00000.sums.json  checksums of its parts

`open` reads such a folder, or a single .npy matrix; `Writer` makes one.
"""

from jaxembed.store.codes import DTYPES
from jaxembed.store.reader import VectorStore, open
from jaxembed.store.writer import SHARD_ROWS, Shard, SingleFile, Writer, check_free

__all__ = ['DTYPES', 'SHARD_ROWS', 'Shard', 'SingleFile', 'VectorStore', 'Writer',
           'check_free', 'open']
