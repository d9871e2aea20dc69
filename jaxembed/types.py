"""Array containers (tokens, pairings, batches, training state) and axis letters.

Letters mean one thing everywhere:
  B rows of text      T tokens           D model width
  S key tokens, or texts of a packed row
  N query heads       K key/value heads  H head width        F feed-forward
  L layers            V vocabulary       R latents           E embedding width
  Q queries           C passages         G passages per query
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

Array = jax.Array | np.ndarray
# Nested dict of arrays. Paths ('backbone/layers/attn/q/kernel') are a public
# contract: checkpoints, the sharding table, conversion and LoRA key on them.
Params = dict[str, Any]
# Scalars (or small vectors) by name, 'group/name'.
Metrics = dict[str, Any]


_Class = TypeVar('_Class')


@dataclass_transform(frozen_default=True)
def _pytree(cls: type[_Class]) -> type[_Class]:
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class Tokens:
  """Tokenised texts.

  Padding may stand on either side; `mask` alone says where text is. `pool` is a
  subset of `mask`: instruction tokens are attended to but not pooled.
  """

  ids: Array  # [B,T] int32
  mask: Array  # [B,T] bool, true on text
  pool: Array  # [B,T] bool, true where the token counts in the embedding
  # [B,T] int32: which of its row's S texts a token belongs to; None: one text a row.
  segment: Array | None = None

  @property
  def slots(self) -> int:
    """S, the most texts that a row may hold."""
    return 1 if self.segment is None else slots(self.ids.shape[1])


def slots(width: int) -> int:
  """S of packed rows of `width` tokens: enough to fill them with texts of 8."""
  return max(width // 8, 4)


@_pytree
class Pairing:
  """Which passage belongs to which query, and what may serve as its negative.

  No layout is assumed: every passage names its owner, so interleaved
  (P N N P N N) and blocked (P P N N N N) passages mean the same.
  Ids are 31-bit hashes of the text as the model reads it: equal ids mean equal
  texts, of queries and passages alike. Never a negative of a row are its positive's
  text, its other known positives, its query's own text, and the positive of another
  row that asks the same query.

  What is None is absent and costs nothing.
  """

  owner: Array  # [C] int32, the query's row; -1 marks a padding passage
  is_positive: Array  # [C] bool, exactly one true per query
  query_id: Array  # [Q] int32
  passage_id: Array  # [C] int32
  group: Array  # [Q] int32, dataset (task) of the row
  in_batch: Array  # [Q] bool, false: only the row's own negatives count
  # [Q] float32, the row's temperature; 0: the loss's.
  temperature: Array | None = None
  # [C] float32, a teacher's score of the passage for its owner; NaN: none.
  score: Array | None = None
  # [Q,P] int32, ids of the row's positives that this batch did not draw; -1: none.
  known: Array | None = None
  # [Q,M] and [C,M] float32, a teacher's vectors of the texts; NaN: none.
  query_teacher: Array | None = None
  passage_teacher: Array | None = None
  # Of the step, not of rows.
  seed: Array | None = None  # [] uint32, from which a loss draws what is random
  progress: Array | None = None  # [] float32, the share of the stage's steps done


@_pytree
class PairBatch:
  """Texts of one training step: queries, passages, and how they belong together."""

  query: Tokens  # [Q,T]
  passage: Tokens  # [C,T], T of its own
  pairing: Pairing

  @property
  def masks(self) -> tuple[Array, ...]:
    """True on text: of the queries [Q,T] and of the passages [C,T]."""
    return self.query.mask, self.passage.mask


@_pytree
class PackedPairs:
  """A PairBatch whose texts share rows: on each device those of its own pairs.

  A text lies on its device in place row * S + segment.
  """

  tokens: Tokens  # [B,T], with segments
  query: Array  # [Q] int32, places of the queries
  passage: Array  # [C] int32, places of the passages; any where owner is -1
  pairing: Pairing

  @property
  def masks(self) -> tuple[Array, ...]:
    """True on text: of the shared rows [B,T]."""
    return (self.tokens.mask,)


Batch = PairBatch | PackedPairs


@_pytree
class TrainState:
  """All that changes from step to step. Randomness is a function of `step`."""

  step: Array  # [] int32, updates done
  params: Params
  opt_state: Any
  ema: Any = None  # running means, float32; None where (or as) there is none

  @property
  def averaged(self) -> Params:
    """The parameters to evaluate and hand on: their running means where kept."""
    if self.ema is None:
      return self.params
    return jax.tree.map(lambda mean, x: x if mean is None else mean.astype(x.dtype),
                        self.ema, self.params, is_leaf=lambda x: x is None)
