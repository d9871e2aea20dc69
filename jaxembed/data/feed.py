"""The training loop's supply: batch after batch, from any step on."""

from collections.abc import Iterator
import dataclasses

import grain

from jaxembed import types
from jaxembed.config import DataConfig
from jaxembed.data import collate, order, sources
from jaxembed.data.tokenise import Tokenizer


@dataclasses.dataclass(frozen=True)
class BatchInfo:
  """Where a batch comes from and what happened to it."""

  step: int
  rows: tuple[tuple[str, int], ...]  # (source, row) of every query, all processes
  counts: collate.Counts  # of this process


def batches(cfg: DataConfig, tokenizer: Tokenizer, *, seed: int, start_step: int = 0,
            process_index: int = 0, process_count: int = 1, shards: int = 1,
            ) -> Iterator[tuple[types.PairBatch | types.PackedPairs, BatchInfo]]:
  """Yields this process's part of batch start_step, start_step + 1, ... for ever.

  A batch is a function of (cfg, seed, step): resuming is starting at a later
  step, and the parts of all processes, one behind the other, are the batch of one
  process. Shapes are fixed, [cfg.batch_size / process_count, T] queries and 1 +
  cfg.num_negatives times as many passages, T being one of the configured lengths.
  With cfg.pack texts share rows with others of their device, one of `shards`.
  Each source is shuffled anew whenever it is used up.

  Raises:
    BadRow: a row cannot be used, with its file and line.
    ValueError: the batch does not divide among the processes, there is no source,
      or the tokenizer was made for shorter texts.
  """
  if not cfg.sources:
    raise ValueError('DataConfig.sources is empty; name at least one dataset')
  if cfg.batch_size % process_count:
    low = cfg.batch_size // process_count * process_count
    raise ValueError(
        f'batch_size {cfg.batch_size} is not a multiple of {process_count} processes; '
        f'use {low or process_count} or {low + process_count}')
  if cfg.batch_size % shards:
    low = cfg.batch_size // shards * shards
    raise ValueError(
        f'batch_size {cfg.batch_size} is not a multiple of {shards} devices; use '
        f'{low or shards} or {low + shards}')
  longest = max(cfg.query_lengths[-1], cfg.passage_lengths[-1])
  if tokenizer.model_max_length and longest > tokenizer.model_max_length:
    raise ValueError(
        f'DataConfig asks for texts of {longest} tokens, but the tokenizer '
        f'{tokenizer.name} is made for {tokenizer.model_max_length} '
        '(model_max_length); shorten query_lengths or passage_lengths')
  rows = [sources.load(s, cfg.check_rows) for s in cfg.sources]
  each = cfg.batch_size // process_count
  mine = range(process_index * each, (process_index + 1) * each)
  # One shape at all processes: they look at all rows where it is not known before.
  open_shape = cfg.pack or len(cfg.query_lengths) > 1 or len(cfg.passage_lengths) > 1
  wanted = range(cfg.batch_size) if open_shape else mine

  def assemble(step: int, refs: list[order.Ref]):
    chosen = []
    for i in wanted:
      group, row = refs[i]
      source = cfg.sources[group]
      negatives, rng = cfg.negatives_of(source), order.rng(seed, step, i)
      example = sources.draw(rows[group], row, negatives, rng)
      chosen.append(collate.choose(example, group, source, negatives, rng))
    batch, counts = collate.collate(chosen, mine, cfg, tokenizer, shards)
    info = BatchInfo(step, tuple((cfg.sources[g].name, r) for g, r in refs), counts)
    return batch, info

  steps = order.batches([len(r) for r in rows], cfg.sources, cfg.batch_size, seed,
                        cfg.homogeneous)
  steps = steps.map_with_index(assemble)[start_step:]
  return iter(steps.to_iter_dataset(grain.ReadOptions(
      num_threads=min(cfg.prefetch, 2), prefetch_buffer_size=cfg.prefetch)))
