"""The protocol of a training loss, and its result."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import NamedTuple, Protocol

import jax

from jaxembed import config, types
from jaxembed.losses.options import Check, resolved


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
  check: raises ValueError on values of the options that mean nothing.
  init: (cfg, width of the embeddings, key) -> the parameters of its own, by name.
  """

  function: Loss
  options: Mapping[str, object] = dataclasses.field(default_factory=dict)
  reads: config.Reads = dataclasses.field(default_factory=config.Reads)
  check: Check | None = None
  init: Callable[[config.LossConfig, int, jax.Array], types.Params] | None = None

  @property
  def reads_scores(self) -> bool:
    """Whether it reads a teacher's scores (Pairing.score)."""
    return self.reads.scores > 0

  def __call__(self, query: types.Array, passage: types.Array, pairing: types.Pairing,
               cfg: config.LossConfig, params: types.Params) -> Result:
    return self.function(query, passage, pairing, self.resolved(cfg), params)

  def resolved(self, cfg: config.LossConfig) -> config.LossConfig:
    """`cfg` with every option; raises ValueError on those that do not fit."""
    return resolved(cfg, self.options, self.check)
