"""Fingerprints of weights, settings and states: equal for equal ones, on any mesh."""

import hashlib
import json
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxembed import types


def of_params(params: types.Params) -> str:
  """Hexadecimal digest of every parameter: its path, shape, dtype and bits."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {leaf.shape} {leaf.dtype};'.encode())
    if getattr(leaf, 'is_fully_addressable', True):
      digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    else:  # shared with other hosts: the sum that all of them can take
      digest.update(str(of_bits(leaf)).encode())
  return digest.hexdigest()


def of_settings(settings: Any) -> str:
  """Hexadecimal digest of plain data (dicts, lists, texts, numbers)."""
  text = json.dumps(settings, sort_keys=True, default=str)
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'),
                         digest_size=16).hexdigest()


def of_bits(tree: Any) -> int:
  """Order-independent sum over the bits of every array, the same on any mesh."""
  return int(_sum(jax.tree.leaves(tree)))


def of_parts(parts: dict[str, Any]) -> tuple[dict[str, int], bool]:
  """({part: `of_bits`}, whether every number is finite), in one program."""
  sums, finite = jax.device_get(_inspected(
      {name: jax.tree.leaves(tree) for name, tree in parts.items()}))
  return {name: int(x) for name, x in sums.items()}, bool(finite)


@jax.jit
def _inspected(parts):
  finite = jnp.bool_(True)
  for x in jax.tree.leaves(parts):
    if jnp.issubdtype(x.dtype, jnp.inexact):
      finite &= jnp.isfinite(x).all()
  return {name: _sum(leaves) for name, leaves in parts.items()}, finite


@jax.jit
def _sum(leaves):
  total = jnp.uint32(0)
  for x in leaves:
    bits = x.astype(jnp.uint8) if x.dtype == bool else lax.bitcast_convert_type(
        x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
    total = total * jnp.uint32(31) + jnp.sum(bits.astype(jnp.uint32))
  return total
