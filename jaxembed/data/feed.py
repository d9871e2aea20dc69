"""Training batches as an iterator that starts at any step."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import grain
import numpy as np

from jaxembed import former, types
from jaxembed.config import DataConfig
from jaxembed.config.check import divides
from jaxembed.data import collate, in_context, pack, sampling
from jaxembed.data.choice import Row
from jaxembed.data.fields import BadRow
from jaxembed.data.mixture import Mixture, open_mixture
from jaxembed.data.tokenise import Tokenizer

# Rows in turn whose texts leave no token, from which on a source is no source.
_MOST_SKIPPED = 100


@dataclasses.dataclass(frozen=True)
class BatchInfo:
  """Where a batch comes from and what happened to it."""

  step: int
  rows: tuple[tuple[str, int], ...]  # (source, row) of every query, all processes
  counts: collate.Counts  # of this process


@former.keywords(mine='local_rows')
def batches(cfg: DataConfig | Mixture, tokenizer: Tokenizer, *, seed: int,
            start_step: int = 0, local_rows: Sequence[int] | np.ndarray | None = None,
            shards: int = 1
            ) -> Iterator[tuple[types.Batch, BatchInfo]]:
  """Yields this process's part of batch start_step, start_step + 1, ... for ever.

  A batch is a function of (cfg, seed, step): resuming is starting at a later
  step, and the parts of all processes make up the batch of one. Shapes are
  [len(local_rows), T] queries and 1 + cfg.num_negatives times as many passages, T being
  one of the configured lengths. With cfg.pack texts share rows with others of their
  device; the number of rows takes one of a few values. Each source is shuffled anew
  whenever it is used up.

  Args:
    cfg: a mixture, opened or to be opened here.
    local_rows: this process's rows of the batch (sharding.local_rows); None: all.
    shards: devices that the batch is split over, in equal parts.

  Raises:
    BadRow: a row cannot be used, with its file and line.
    ValueError: the batch does not divide among the devices, there is no source,
      prompts leave no room for texts, or the tokenizer was made for shorter ones.
  """
  given = cfg.cfg if isinstance(cfg, Mixture) else cfg
  divides(f'batch_size {given.batch_size}', given.batch_size, shards)
  mixture = cfg if isinstance(cfg, Mixture) else open_mixture(given)
  mixture.check(tokenizer)
  same, answers = mixture.same_ids(tokenizer), mixture.answers(tokenizer)
  local = np.arange(given.batch_size) if local_rows is None else np.asarray(local_rows)
  if given.pack:
    pack.check_shares(local, given.batch_size, shards)
  # One shape at all processes: they look at all rows where it is not known before.
  examples = in_context.asked(given)
  open_shape = (examples or given.pack or len(given.query_lengths) > 1
                or len(given.passage_lengths) > 1)
  wanted = np.arange(given.batch_size) if open_shape else local

  def collated(chosen: list[Row]):
    return collate.collate(
        chosen, local, given, tokenizer, shards, known=mixture.known,
        scored=mixture.scored, same=same, answers=answers,
        teachers=mixture.teachers)

  def assemble(step: int, refs: list[sampling.Ref]):
    chosen = [mixture.draw(refs[i], sampling.rng(seed, step, i))
              for i in wanted.tolist()]
    if examples:
      chosen = in_context.with_examples(chosen, given, tokenizer, seed, step)
    try:
      batch, counts = collated(chosen)
    except BadRow:
      if all(s.on_bad_row == 'fail' for s in given.sources):
        raise
      batch, counts = collated(_readable(
          chosen, [refs[i] for i in wanted.tolist()], mixture, tokenizer,
          lambda k: sampling.rng(seed, step, int(wanted[k]))))
    info = BatchInfo(step, tuple((given.sources[g].name, r) for g, r in refs), counts)
    return batch, info

  steps = sampling.batches(mixture.sizes, given, seed)
  steps = steps.map_with_index(assemble)[start_step:]
  return iter(steps.to_iter_dataset(grain.ReadOptions(
      num_threads=min(given.prefetch, 2), prefetch_buffer_size=given.prefetch)))


def _readable(chosen: Sequence[Row], refs: Sequence[sampling.Ref], mixture: Mixture,
              tokenizer: Tokenizer, rng: Callable[[int], np.random.Generator]
              ) -> list[Row]:
  """Rows, with the next one of its source for each whose texts leave no token, where
  bad rows are skipped."""
  found = []
  for k, (row, (group, place)) in enumerate(zip(chosen, refs)):
    size, tried = mixture.sizes[group], 0
    while (mixture.cfg.sources[group].on_bad_row == 'skip'
           and not collate.is_readable(row, mixture.cfg, tokenizer)
           and tried < min(size, _MOST_SKIPPED)):
      tried += 1
      after = mixture.draw((group, (place + tried) % size), rng(k))
      row = dataclasses.replace(after, skipped=row.skipped + 1)
    found.append(row)
  return found
