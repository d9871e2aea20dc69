"""Training batches as an iterator that starts at any step."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any, cast

import grain
import numpy as np

from jaxembed import former, types
from jaxembed.config import DataConfig
from jaxembed.config.check import divides
from jaxembed.data import collate, in_context, pack, sampling
from jaxembed.data.choice import Row, empty
from jaxembed.data.fields import BadFile, BadRow
from jaxembed.data.mixture import Mixture, open_mixture
from jaxembed.data.tokenise import Tokenizer

# Skipped rows, one after the other, from which on there is nothing to train on.
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
  whenever it is used up. The place of a row that is skipped (on_bad_row) stays empty:
  no passage is its own, and losses leave it out.

  Args:
    cfg: a mixture, opened or to be opened here.
    local_rows: this process's rows of the batch (sharding.local_rows); None: all.
    shards: devices that the batch is split over, in equal parts.

  Raises:
    BadRow: a row cannot be used, with its file and line, or none of a hundred can.
    ValueError: the batch does not divide among the devices, there is no source,
      prompts leave no room for texts, or the tokenizer was made for shorter ones.
  """
  given = cfg.cfg if isinstance(cfg, Mixture) else cfg
  divides(f'batch_size {given.batch_size}', given.batch_size, shards)
  mixture = cfg if isinstance(cfg, Mixture) else open_mixture(given)
  mixture.check(tokenizer)
  local = np.arange(given.batch_size) if local_rows is None else np.asarray(local_rows)
  if given.pack:
    pack.check_shares(local, given.batch_size, shards)
  # One shape at all processes: they look at all rows where it is not known before.
  open_shape = (in_context.asked(given) or given.pack or len(given.query_lengths) > 1
                or len(given.passage_lengths) > 1)
  wanted = np.arange(given.batch_size) if open_shape else local

  steps = sampling.batches(mixture.sizes, given, seed)
  assemble = _Assembler(
      mixture, tokenizer, seed, cast(Any, steps), wanted.tolist(), functools.partial(
          collate.collate, local=local, cfg=given, tokenizer=tokenizer, shards=shards,
          known=mixture.known, scored=mixture.scored, same=mixture.same_ids(tokenizer),
          answers=mixture.answers(tokenizer), teachers=mixture.teachers))
  steps = steps.map_with_index(assemble)[start_step:]
  return iter(steps.to_iter_dataset(grain.ReadOptions(
      num_threads=min(given.prefetch, 2), prefetch_buffer_size=given.prefetch)))


@dataclasses.dataclass(frozen=True)
class _Assembler:
  """What makes a batch of the rows that are its own: (step, refs) -> batch, info."""

  mixture: Mixture
  tokenizer: Tokenizer
  seed: int
  steps: Sequence[list[sampling.Ref]]  # the rows of every step
  wanted: list[int]  # places in the batch whose rows are drawn here
  collated: Callable[[Sequence[Row]], tuple[types.Batch, collate.Counts]]

  def __call__(self, step: int, refs: list[sampling.Ref]
               ) -> tuple[types.Batch, BatchInfo]:
    cfg = self.mixture.cfg
    chosen = [self._drawn(step, refs, i) for i in self.wanted]
    if in_context.asked(cfg):
      chosen = in_context.with_examples(chosen, cfg, self.tokenizer, self.seed, step)
    try:
      batch, counts = self.collated(chosen)
    except BadRow:
      if all(s.on_bad_row == 'fail' for s in cfg.sources):
        raise
      chosen = [self._readable(row) for row in chosen]
      batch, counts = self.collated(chosen)
    if all(row.bad for row in chosen):
      self._check(step, chosen[0].bad)
    return batch, BatchInfo(
        step, tuple((cfg.sources[g].name, r) for g, r in refs), counts)

  def _drawn(self, step: int, refs: list[sampling.Ref], place: int) -> Row:
    return self.mixture.draw(refs[place], sampling.rng(self.seed, step, place))

  def _check(self, step: int, said: str) -> None:
    """Raises BadFile if the last rows up to those of `step`, of all processes, are bad.

    said: what is wrong with one.
    """
    seen = 0
    while seen < _MOST_SKIPPED:
      if step < 0:
        return
      refs = self.steps[step]
      if not all(self._readable(self._drawn(step, refs, i)).bad
                 for i in range(len(refs))):
        return
      seen, step = seen + len(refs), step - 1
    raise BadFile(f'{seen} rows one after the other cannot be used, such as {said}')

  def _readable(self, row: Row) -> Row:
    """The row, or an empty one if a text of it leaves no token and it is skipped."""
    if self.mixture.cfg.sources[row.group].on_bad_row == 'fail':
      return row
    said = collate.unreadable(row, self.mixture.cfg, self.tokenizer)
    return empty(row.group, said) if said else row
