"""Masks as vectors, static options and results of masked_lse."""

import dataclasses
from typing import NamedTuple

import jax

# Logits of masked pairs. Finite, so that no product with it is a NaN.
MASKED = -1e30
# Bounded mode subtracts this share of the scale from every logit. float32 sums
# then hold row maxima from BOUND - 87/scale to BOUND + 73/scale for up to 4M
# columns: cosines -0.6 to 1.0 at scale 100, every cosine at scale 43.
BOUND = 0.27


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskVectors:
  """The masks of one side (rows or columns), one entry per vector.

  A pair (i, j) is kept if no id of i equals the id of j at the same place in
  `ids`, and (their groups are equal or their owners are equal), and its raw
  similarity is at most the threshold, and the product of their guides, vectors of
  another model, is at most the guide's limit (a NaN of either keeps it). What is None
  or empty masks nothing and costs nothing. ids, group, owner and guide are given on
  both sides or on neither.
  """

  ids: tuple[jax.Array, ...] = ()  # each [N] int32
  group: jax.Array | None = None  # [N] int32
  owner: jax.Array | None = None  # [N] int32
  threshold: jax.Array | None = None  # [N] float32, of this side's own sums
  bias: jax.Array | None = None  # [N] float32, added to logits the OTHER side sums
  scale: jax.Array | None = None  # [N] float32, of this side's own sums, for `scale`
  guide: jax.Array | None = None  # [N,M] float32
  guide_limit: jax.Array | None = None  # [N] float32, of this side's own sums


NO_MASK = MaskVectors()


class Sums(NamedTuple):
  """Result of masked_lse in one direction."""

  lse: jax.Array  # [N] float32, -inf where every pair is masked, NaN if a kept one is
  num_kept: jax.Array  # [N] int32, pairs that were not masked
  max_logit: jax.Array  # [N] float32, of those kept; -inf where there is none


@dataclasses.dataclass(frozen=True)
class Options:
  """What specialises the compiled tile."""

  dtype: str = 'float32'  # of the operands of every product
  rows: bool = True  # sums over columns, per row
  cols: bool = False  # sums over rows, per column
  bounded: bool = False  # a constant shift in place of the running maximum
  # alpha of z = scale*s + alpha*stop_gradient(s): (equal owner, any other pair).
  hardness: tuple[float, float] = (0.0, 0.0)
  # dS is rounded to `dtype` for its two products. False keeps float32:
  # on a CPU, which multiplies bfloat16 in float32 anyway, rounding buys nothing.
  round_dlogits: bool = True
  tile_bytes: int = 0  # of the float32 score tile; 0: the platform's default
  interpret: bool = False  # run Pallas kernels in their interpreter

  @property
  def alpha_max(self) -> float:
    """The largest weight exponent of a negative."""
    return max(self.hardness)
