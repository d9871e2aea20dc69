"""Sampling of rows: shuffling and mixing as a pure function of (seed, step)."""

from collections.abc import Sequence
import zlib

import grain
import numpy as np

from jaxembed.config import DataConfig, SourceConfig

# (source, row): where a batch's entry comes from.
Ref = tuple[int, int]


def batches(sizes: Sequence[int], cfg: DataConfig, seed: int) -> grain.MapDataset:
  """An endless random-access dataset of batches of `cfg.batch_size` Refs.

  Every source is shuffled, anew in each pass through it, and the sources are
  interleaved by their shares: evenly within a batch, or so many rows or whole batches
  at a time from the sources of one task.

  Args:
    sizes: rows of each source.
    seed: orders depend on it and on a source's name, not on its place.
  """
  orders = [_order(i, n, zlib.crc32(f'{seed}/{s.name}'.encode()))
            for i, (n, s) in enumerate(zip(sizes, cfg.sources))]
  weights = shares(sizes, cfg.sources, cfg.size_temperature)
  together = cfg.batch_size if cfg.homogeneous else cfg.sub_batch
  if not together:
    return _batched(_mix(orders, weights), cfg.batch_size)
  tasks: dict[str, list[int]] = {}
  for i, s in enumerate(cfg.sources):
    tasks.setdefault(f'task {s.task}' if s.task else f'source {s.name}', []).append(i)
  parts = [_batched(_mix([orders[i] for i in of], [weights[i] for i in of]), together)
           for of in tasks.values()]
  mixed = _mix(parts, [sum(weights[i] for i in of) for of in tasks.values()])
  if together == cfg.batch_size:
    return mixed
  return _batched(mixed, cfg.batch_size // together).map(
      lambda parts: [ref for part in parts for ref in part])


def shares(sizes: Sequence[int], sources: Sequence[SourceConfig],
           size_temperature: float) -> list[float]:
  """Shares of the mixture, not normalised: weight x size^(1 / temperature).

  A temperature of 1 is in proportion to sizes, a higher one nearer to equal shares
  (mT5 takes 10/3, as XLM-R does); 0: weights alone. No size counts beyond the
  source's `cap` (T5's examples-proportional mixing).
  """
  if not size_temperature:
    return [s.weight for s in sources]
  counted = [_counted(n, s) for n, s in zip(sizes, sources)]
  most = max(counted)
  return [s.weight * (n / most)**(1 / size_temperature)
          for n, s in zip(counted, sources)]


def epoch(sizes: Sequence[int], sources: Sequence[SourceConfig]) -> int:
  """Rows of an epoch: of every source all, or up to its `cap`."""
  return sum(map(_counted, sizes, sources))


def rng(seed: int, step: int, row: int) -> np.random.Generator:
  """Draws for one row of one step, the same on every host."""
  return np.random.default_rng((seed, step, row))


def _counted(size: int, source: SourceConfig) -> int:
  return min(size, source.cap or size)


def _order(source: int, size: int, seed: int) -> grain.MapDataset:
  rows = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  return rows.map(lambda row: (source, int(row)))


def _batched(refs: grain.MapDataset, size: int) -> grain.MapDataset:
  if size == 1:  # grain's length of endless batches of one is more than an int holds
    return refs.map(lambda ref: [ref])
  return refs.batch(size, batch_fn=list)


def _mix(parts: list[grain.MapDataset], weights: list[float]) -> grain.MapDataset:
  return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
