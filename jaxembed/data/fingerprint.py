"""Fingerprint of a source's data: number of rows, hash of what they are read from."""

from collections.abc import Sequence
import hashlib
from typing import Any

from jaxembed.config import SourceConfig
from jaxembed.data import memory, sources
from jaxembed.data.records import Example

# Of a source that cannot tell what it is read from, at most so many rows, evenly.
_SAMPLE = 10_000


def fingerprint(cfg: SourceConfig, rows: Sequence[Example] | None = None,
                stored: Any = None, given: memory.Rows | None = None
                ) -> dict[str, int | str]:
  """Number of rows ('rows') and hash of what they are read from ('sha256').

  Of files every byte counts, at the speed of the disk, and of rows in memory every
  row; of tfds and installed_code up to 10,000 rows.

  Args:
    rows, stored: the examples of `cfg` and what they are read from
      (`sources.opened`), where they are open.
    given: rows of kind 'memory', where they are not.
  """
  if rows is None:
    stored = sources.opened(cfg, given)
    rows = sources.examples(cfg, stored)
  if hasattr(stored, 'digest'):
    return {'rows': len(rows), 'sha256': stored.digest().hex()}
  digest = hashlib.sha256()
  for i in sources.spread(len(rows), _SAMPLE):
    digest.update(repr(rows[i]).encode('utf-8', 'surrogatepass'))
  return {'rows': len(rows), 'sha256': digest.hexdigest()}
