"""Stages of a run with their first and last steps."""

import dataclasses
import itertools

from jaxembed import config


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
