"""Sums over the bits of arrays, by which a copy of them is known to be whole.

A sum is the same on any mesh. Arrays in this machine's memory are added by numpy, block
by block: XLA for CPUs would write the bits out first, as many bytes again. What lies on
accelerators, or on other hosts, is added where it is.
"""

from collections.abc import Mapping
import concurrent.futures
import itertools
import os
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1 << 18  # numbers that are looked at together: they stay in the cache
_NUMPY = ('float64', 'float32', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint64',
          'uint32', 'uint16', 'uint8')


def of_tree(tree: Any) -> int:
  """Sum over the bits of every array of a tree, in the order of its leaves."""
  return of_parts({'': tree})[0]['']


def of_parts(parts: Mapping[str, Any]) -> tuple[dict[str, int], bool]:
  """({name: sum over its tree}, whether every number is finite)."""
  leaves = {name: jax.tree.leaves(tree) for name, tree in parts.items()}
  each = iter(_of_each([x for part in leaves.values() for x in part]))
  sums, finite = {}, True
  for name, part in leaves.items():
    total = 0
    for one, good in itertools.islice(each, len(part)):
      total, finite = (total * 31 + int(one)) % 2**32, finite and bool(good)
    sums[name] = total
  return sums, finite


def _of_each(arrays: list[Any]) -> list[tuple[int, bool]]:
  """(sum modulo 2^32, whether all is finite) of every array."""
  there = iter(_on_device([x for x in arrays if not _is_here(x)]))
  with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
    here = pool.map(_on_host, filter(_is_here, arrays))
    return [next(here if _is_here(x) else there) for x in arrays]


def _is_here(x: Any) -> bool:
  return not isinstance(x, jax.Array) or (
      x.is_fully_addressable and x.dtype.name in _NUMPY
      and all(d.platform == 'cpu' for d in x.devices()))


def _on_host(x: Any) -> tuple[int, bool]:
  """As _of_each, of one array in this machine's memory."""
  if isinstance(x, jax.Array):  # as views that end here: a view hinders donation
    views = [np.from_dlpack(piece.data) for piece in x.addressable_shards
             if piece.replica_id == 0]
  else:
    views = [np.asarray(x)]
  total, finite = 0, True
  for view in views:
    flat = np.ascontiguousarray(view).reshape(-1)
    bits = (flat.astype(np.uint8) if flat.dtype == bool
            else flat.view(f'uint{8 * flat.itemsize}'))
    for first in range(0, flat.size, _BLOCK):
      block = slice(first, first + _BLOCK)
      total += int(bits[block].sum(dtype=np.uint32))
      finite = finite and (not np.issubdtype(flat.dtype, np.inexact)
                           or bool(np.isfinite(flat[block]).all()))
  return total % 2**32, finite


def _on_device(arrays: list[jax.Array]) -> list[tuple[int, bool]]:
  return jax.device_get(_added(arrays)) if arrays else []


@jax.jit
def _added(arrays):
  return [(_sum(x), jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact)
           else jnp.bool_(True)) for x in arrays]


def _sum(x: jax.Array) -> jax.Array:
  bits = x.astype(jnp.uint8) if x.dtype == bool else lax.bitcast_convert_type(
      x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
  return jnp.sum(bits.astype(jnp.uint32))
