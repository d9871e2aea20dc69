"""Masks of negatives: the mask vectors of the kernel, made from a Pairing.

No [Q,C] array is formed. Which passage may be a negative of which row:
  * an equal text never: a passage with the id of the row's positive, of another of
    its known positives or of its query, or the positive of a row with the same query;
    between rows (a query or a positive against another row's) either row's ids count;
  * a row with in_batch=False sees its own passages only, and its query is no
    negative of other rows' positives; its passages are negatives like any other;
  * with same_group, in-batch rows see passages of their own dataset only.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxembed import config, types
from jaxembed.kernels import contrastive
from jaxembed.mesh import replicate

# Groups and ids that no text has.
_OWN_ONLY = -1
_PADDING = -2
_NO_QUERY = -3


class Layout(NamedTuple):
  """Positives and mask vectors of a batch, replicated on every device."""

  positive: jax.Array  # [Q] int32, the passage that is the row's positive; any if none
  valid: jax.Array  # [Q] bool, the row has a positive
  row: contrastive.MaskVectors  # of queries against passages
  col: contrastive.MaskVectors
  peer_row: contrastive.MaskVectors  # a query (or its positive) against other rows'
  peer_col: contrastive.MaskVectors

  @property
  def owner(self) -> jax.Array:
    """[C] int32, the row that a passage was made for; -1 marks padding."""
    assert self.col.owner is not None  # `layout` gives one
    return self.col.owner

  @property
  def asked_by(self) -> jax.Array:
    """[C] int32, the row that a passage was made for; of padding the row of its place,
    which stands on its device: see contrastive.take."""
    queries = self.positive.size
    nearby = jnp.arange(self.owner.size, dtype=jnp.int32) // max(
        self.owner.size // queries, 1)
    return jnp.minimum(jnp.where(self.owner < 0, nearby, self.owner), queries - 1)

  def positives_of(self, x: jax.Array, axes: tuple[str, ...], mode: str) -> jax.Array:
    """[Q,E]: of x [C,E] every row's positive; both are split over `axes`."""
    return contrastive.take(x, self.positive, axes, mode)

  def at_positives(self, x: jax.Array, otherwise: float) -> jax.Array:
    """[C]: the value in x [Q] of the row whose positive a passage is."""
    out = jnp.full(self.owner.shape, otherwise, x.dtype)
    return out.at[jnp.where(self.valid, self.positive, out.size)].set(x, mode='drop')


def layout(pairing: types.Pairing, cfg: config.LossConfig) -> Layout:
  """Index of every row's positive and the masks that depend on ids alone."""
  p = jax.tree.map(replicate, dataclasses.replace(
      pairing, query_teacher=None, passage_teacher=None))
  queries = p.query_id.shape[0]
  columns = jnp.arange(p.owner.shape[0], dtype=jnp.int32)
  real = p.owner >= 0
  at = jnp.where(real & p.is_positive, p.owner, queries)  # out of range: dropped
  positive = jnp.full((queries,), -1, jnp.int32).at[at].set(columns, mode='drop')
  valid = positive >= 0
  # Where there is none, a passage on the row's own device: see contrastive.take.
  nearby = jnp.arange(queries, dtype=jnp.int32) * (columns.size // queries)
  positive = jnp.where(valid, positive, nearby)

  own = jnp.clip(p.owner, 0, queries - 1)
  group = p.group if cfg.same_group else jnp.zeros((queries,), jnp.int32)
  positive_id = jnp.where(valid, p.passage_id[positive], _NO_QUERY)
  asks = jnp.where(real & p.is_positive, p.query_id[own], _NO_QUERY - 1)
  known = () if p.known is None else tuple(p.known.T)
  row = contrastive.MaskVectors(
      ids=(positive_id, p.query_id, p.query_id, *known),
      owner=jnp.arange(queries, dtype=jnp.int32),
      group=jnp.where(p.in_batch, group, _OWN_ONLY))
  col = contrastive.MaskVectors(
      ids=(p.passage_id, asks, p.passage_id, *(p.passage_id for _ in known)),
      owner=jnp.where(real, p.owner, _PADDING),
      group=jnp.where(real, group[own], _PADDING))
  pairs = _between_rows(p.query_id, positive_id, known)
  peer_row = dataclasses.replace(row, ids=tuple(a for a, _ in pairs))
  peer_col = contrastive.MaskVectors(
      ids=tuple(b for _, b in pairs),
      owner=jnp.full((queries,), _PADDING, jnp.int32),
      group=jnp.where(valid, group, _PADDING))
  return Layout(positive, valid, row, col, peer_row, peer_col)


def _between_rows(query_id, positive_id, known):
  """Pairs of ids [Q] that tell of two rows that one is no negative of the other."""
  texts = query_id, positive_id
  pairs = [(a, b) for a in texts for b in texts]
  for other in known:
    pairs += [pair for text in texts for pair in ((other, text), (text, other))]
  return pairs


def thresholds(positive_score: jax.Array, cfg: config.LossConfig) -> jax.Array | None:
  """Highest similarity that a negative may have, [Q] float32, or None if unlimited.

  margin: Qwen3-Embedding (0.1). relative_margin: positive-aware mining (0.95), the
  positive's score times it where that is positive.
  """
  score = jax.lax.stop_gradient(positive_score)
  limits = []
  if cfg.margin < float('inf'):
    limits.append(score + cfg.margin)
  if cfg.relative_margin < float('inf'):
    # Of its size: below 1 the limit is never above the positive, whatever its sign.
    limits.append(score + (cfg.relative_margin - 1) * jnp.abs(score))
  return jnp.minimum(*limits) if len(limits) == 2 else limits[0] if limits else None
