"""Fingerprint of a source's data: number of rows, hash of what they are read from."""

from collections.abc import Sequence
import hashlib

from jaxembed.config import SourceConfig
from jaxembed.data import sources
from jaxembed.data.records import Example

# Of a source that is no file of ours, at most so many rows, spread evenly.
_SAMPLE = 10_000


def fingerprint(cfg: SourceConfig, rows: Sequence[Example] | None = None
                ) -> dict[str, int | str]:
  """{'rows': how many there are, 'sha256': of what they are read from}.

  Of jsonl and tsv every byte counts, at the speed of the disk; of tfds and
  installed_code up to 10,000 rows. `rows` are those of `cfg`, where they are open.
  """
  rows = sources.load(cfg) if rows is None else rows
  digest = hashlib.sha256()
  if cfg.kind in ('jsonl', 'tsv'):
    for path in sources.paths(cfg):
      with path.open('rb') as file:
        digest.update(hashlib.file_digest(file, 'sha256').digest())
  else:
    for i in sources.spread(len(rows), _SAMPLE):
      digest.update(repr(rows[i]).encode('utf-8', 'surrogatepass'))
  return {'rows': len(rows), 'sha256': digest.hexdigest()}
