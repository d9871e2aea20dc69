"""Buckets in memory, in the place of object stores."""

import contextlib
from unittest import mock

from jaxembed.files import place, remote_lock, url


@contextlib.contextmanager
def opened(home):
  """Every gs:// and s3:// URL lies in memory; copies are made under `home`."""
  obstore = __import__('obstore.store').store
  buckets = {}
  with (mock.patch.object(url, 'opened', lambda bucket: buckets.setdefault(
            bucket, obstore.MemoryStore())),
        mock.patch.object(place, 'HOME', str(home)),
        mock.patch.multiple(remote_lock, BEAT=0.05, STALE=0.4)):
    yield
