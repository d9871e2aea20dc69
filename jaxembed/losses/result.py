"""The protocol of a training loss, and its result."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple, Protocol

import jax

from jaxembed import config, types
from jaxembed.config import check


class Result(NamedTuple):
  """The value of a loss for a global batch."""

  value: jax.Array  # [] float32, what is minimised
  per_query: jax.Array  # [Q] float32, the losses that `value` is the mean of
  metrics: types.Metrics  # of [] arrays, 'loss/name'


class Loss(Protocol):
  """A training loss.

  query [Q,E], passage [C,E]: float32, global arrays; rows are split over
  mesh.BATCH under a mesh. What rows carry (owners, ids, temperatures, teacher
  scores) is in `pairing`. `params` are the loss's own parameters, by name:
  {'log_scale': []} with cfg.learn_temperature, else {}. Called inside jit.
  """

  def __call__(self, query: types.Array, passage: types.Array, pairing: types.Pairing,
               cfg: config.LossConfig, params: types.Params, /) -> Result:
    ...


@dataclasses.dataclass(frozen=True)
class Named:
  """A loss of the table, which is called like any other.

  options: of LossConfig.options, those that it reads, with their defaults.
  reads: what rows bring for it.
  """

  function: Loss
  options: Mapping[str, object] = dataclasses.field(default_factory=dict)
  reads: config.Reads = dataclasses.field(default_factory=config.Reads)

  @property
  def reads_scores(self) -> bool:
    """Whether it reads a teacher's scores (Pairing.score)."""
    return self.reads.scores > 0

  def __call__(self, query: types.Array, passage: types.Array, pairing: types.Pairing,
               cfg: config.LossConfig, params: types.Params) -> Result:
    whole = check.options(cfg, self.options, f'the loss {cfg.name}')
    if self.options:
      cfg = dataclasses.replace(cfg, options=tuple(whole.items()))
    return self.function(query, passage, pairing, cfg, params)
