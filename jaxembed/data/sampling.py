"""Sampling of rows: shuffling and mixing as a pure function of (seed, step)."""

from collections.abc import Sequence
import zlib

import grain
import numpy as np

from jaxembed.config import SourceConfig

# (source, row): where a batch's entry comes from.
Ref = tuple[int, int]


def batches(sizes: Sequence[int], sources: Sequence[SourceConfig], batch_size: int,
            seed: int, homogeneous: bool = False) -> grain.MapDataset:
  """An endless random-access dataset of batches of `batch_size` Refs.

  Every source is shuffled, anew in each pass through it, and the sources are
  interleaved by weight: evenly within a batch, or batch by batch.

  Args:
    sizes: rows of each source.
    seed: orders depend on it and on a source's name, not on its place.
  """
  orders = [_order(i, n, zlib.crc32(f'{seed}/{s.name}'.encode()))
            for i, (n, s) in enumerate(zip(sizes, sources))]
  weights = [s.weight for s in sources]
  if homogeneous:
    return _mix([_batched(o, batch_size) for o in orders], weights)
  return _batched(_mix(orders, weights), batch_size)


def rng(seed: int, step: int, row: int) -> np.random.Generator:
  """Draws for one row of one step, the same on every host."""
  return np.random.default_rng((seed, step, row))


def _order(source: int, size: int, seed: int) -> grain.MapDataset:
  rows = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  return rows.map(lambda row: (source, int(row)))


def _batched(refs: grain.MapDataset, size: int) -> grain.MapDataset:
  if size == 1:  # grain's length of endless batches of one is more than an int holds
    return refs.map(lambda ref: [ref])
  return refs.batch(size, batch_fn=list)


def _mix(parts: list[grain.MapDataset], weights: list[float]) -> grain.MapDataset:
  return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
