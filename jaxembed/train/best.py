"""Best checkpoint and early stopping: evaluations compared by one score."""

from collections.abc import Iterable, Mapping
import dataclasses
import math
from typing import Any


@dataclasses.dataclass
class Best:
  """Which step scored best, and how many evaluations ago.

  metric: as CheckpointConfig.best; '-' before a name: lower is better. The start of a
    run is no candidate: it has no checkpoint.
  """

  metric: str
  step: int | None = None
  score: float = math.nan
  since: int = 0  # evaluations after it
  start: float = math.nan  # the score before training

  @property
  def name(self) -> str:
    """The score's name, without the sign."""
    return self.metric.removeprefix('-')

  def see(self, step: int, scores: Mapping[str, Any]) -> bool:
    """Takes the evaluation after `step` in; whether it is the best so far.

    Of equal scores the first counts, and one that is not finite is never the best.
    """
    if not self.name or self.name not in scores:
      return False
    score = scores[self.name]
    score = math.nan if score is None else float(score)
    if not step:
      self.start = score
      return False
    sign = -1 if self.metric.startswith('-') else 1
    if math.isfinite(score) and not sign * self.score >= sign * score:
      self.step, self.score, self.since = step, score, 0
      return True
    self.since += 1
    return False

  def ended(self, patience: int) -> bool:
    """Whether so many evaluations in a row were no better; 0: never."""
    return bool(patience) and self.since >= patience

  def __str__(self) -> str:
    text = f'{self.name} {self.score:.4f} at step {self.step}'
    return text + (f' ({self.start:.4f} before training)'
                   if math.isfinite(self.start) else '')


def of_records(metric: str, records: Iterable[Mapping[str, Any]]) -> Best:
  """The best among the evaluations of metrics.jsonl."""
  found = Best(metric)
  for record in records:
    found.see(record['step'], record)
  return found
