"""Stages of a run with their first and last steps."""

import contextlib
import dataclasses
import itertools

from jaxembed import config, data
from jaxembed.data import memory, sampling


@dataclasses.dataclass(frozen=True)
class Stage:
  """A StageConfig with its place in the run."""

  index: int
  first: int  # steps done when it begins
  last: int  # and when it ends
  cfg: config.StageConfig


def stages(cfg: config.Config) -> list[Stage]:
  """The stages of `cfg` in their order."""
  ends = list(itertools.accumulate(s.steps for s in cfg.stages))
  return [Stage(i, end - s.steps, end, s)
          for i, (s, end) in enumerate(zip(cfg.stages, ends))]


def with_epochs(cfg: config.Config, given: memory.Rows | None = None, *,
                missing_ok: bool = False
                ) -> tuple[config.Config, list[str]]:
  """`cfg` with the steps that its stages' epochs are, and a line of each.

  What of the last epoch makes no whole batch is left out, and told: no row comes once
  more than epochs say, as sources are shuffled anew only when they are used up.

  Args:
    given: by name of a source of kind 'memory', its rows.
    missing_ok: a stage whose data is not here keeps its steps.
  """
  told, found = [], []
  for stage in cfg.stages:
    sizes = []
    with contextlib.suppress(*[FileNotFoundError] * missing_ok):
      sizes = [len(data.load(s, given=given)) for s in stage.data.sources
               if stage.epochs]
    if sizes:
      rows = sampling.epoch(sizes, stage.data.sources)
      size, count = stage.data.batch_size, stage.epochs * rows
      steps = max(1, int(count // size))
      stage = dataclasses.replace(stage, steps=steps)
      told.append(f'epochs     {stage.name}: {stage.epochs:g} of {rows} rows are '
                  f'{steps} steps of {size}' + (
                      f'; {count - steps * size:.0f} rows make no whole batch and are '
                      'left out' if count > steps * size else ''))
    found.append(stage)
  return dataclasses.replace(cfg, stages=found), told
