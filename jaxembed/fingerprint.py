"""Fingerprints of weights and settings: equal for equal ones, whatever their name."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from jaxembed import checksum, types


def of_params(params: types.Params) -> str:
  """Hexadecimal digest of every parameter: its path, shape, dtype and bits."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {leaf.shape} {leaf.dtype};'.encode())
    if getattr(leaf, 'is_fully_addressable', True):
      digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    else:  # shared with other hosts: the sum that all of them can take
      digest.update(str(checksum.of_tree(leaf)).encode())
  return digest.hexdigest()


def of_settings(settings: Any) -> str:
  """Hexadecimal digest of plain data (dicts, lists, texts, numbers)."""
  text = json.dumps(settings, sort_keys=True, default=str)
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'),
                         digest_size=16).hexdigest()
