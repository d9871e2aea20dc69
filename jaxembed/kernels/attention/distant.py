"""Attention that scores distant tokens by queries and keys of their own (SelfExtend).

Jin et al. 2024 (arXiv 2401.01325), and its two-way form (LongEmbed, arXiv 2404.12096):
near tokens are scored at their positions, others at positions by groups, which differ
between the keys before a query and those behind it. Tiles of queries, one after the
other, see all keys; the backward pass computes a tile's scores again.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed.functional import accumulator
from jaxembed.kernels.attention.pattern import Pattern, visible
from jaxembed.kernels.attention.reference import MASKED
from jaxembed.types import Array

# Scores of a tile, of which three sets are alive at a time.
CPU_SCORES, DEVICE_SCORES = 2**21, 2**26


class Distant(NamedTuple):
  """Queries [B,T,N,H] and keys [B,T,K,H] of tokens that are far apart."""

  near: Array  # [B,T] int32: keys nearer than this to a query are not distant
  query: Array  # for keys before the query
  key: Array
  query_ahead: Array  # for keys behind the query
  key_ahead: Array


def attend(q: Array, k: Array, v: Array, pattern: Pattern, distant: Distant, *,
           scale: float, softcap: float = 0.0, cpu: bool = True) -> jax.Array:
  """As reference.attend, with the scores of distant keys by `distant`.

  q [B,T,N,H]; k, v [B,T,K,H] -> [B,T,N,H]. Arrays are local to a device.
  """
  batch, length, heads, width = q.shape
  groups = k.shape[2]
  room = (CPU_SCORES if cpu else DEVICE_SCORES) // (batch * heads * length)
  side = min(max(room // 8 * 8, 8), -(-length // 8) * 8)
  tiles = -(-length // side)

  def split(x):  # [B,T,N,H] -> [tiles,B,K,G,side,H]
    x = jnp.pad(x, ((0, 0), (0, tiles * side - length), (0, 0), (0, 0)))
    x = x.reshape(batch, tiles, side, groups, heads // groups, x.shape[-1])
    return x.transpose(1, 0, 3, 4, 2, 5)

  def per_query(x, fill):  # [B,T] -> [tiles,B,side]
    x = jnp.pad(x, ((0, 0), (0, tiles * side - length)), constant_values=fill)
    return x.reshape(batch, tiles, side).swapaxes(0, 1)

  factor = jnp.asarray(scale, q.dtype)
  queries = tuple(split(x * factor) for x in (q, distant.query, distant.query_ahead))
  keys = tuple(x.swapaxes(1, 2) for x in (k, distant.key, distant.key_ahead))
  run = jax.checkpoint(functools.partial(
      _tile, keys, v.swapaxes(1, 2), pattern, softcap))
  out = lax.map(lambda part: run(*part), (
      queries, per_query(pattern.text, -1), per_query(distant.near, 1),
      jnp.arange(tiles, dtype=jnp.int32) * side))
  out = out.transpose(1, 0, 4, 2, 3, 5)  # [B,tiles,side,K,G,H]
  return out.reshape(batch, tiles * side, heads, width)[:, :length]


def _tile(keys, v, pattern: Pattern, softcap: float, queries, text, near, first):
  """[B,K,G,t,H] of one tile of queries: three of [B,K,G,t,H], text and near [B,t]."""
  place = first + jnp.arange(text.shape[1], dtype=jnp.int32)
  others = jnp.arange(v.shape[2], dtype=jnp.int32)
  ahead = others[None] - place[:, None]  # [t,T]
  exact, behind, before = (
      jnp.einsum('BKGTH,BKSH->BKGTS', q, k, preferred_element_type=accumulator(q.dtype))
      for q, k in zip(queries, keys))
  is_near = (abs(ahead) < near[:, :, None])[:, None, None]
  scores = jnp.where(is_near, exact, jnp.where(ahead < 0, behind, before))
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  seen = visible(text, pattern.text, place, others, pattern.prefix, pattern.causal,
                 pattern.limit, pattern.packed)
  scores = jnp.where(seen[:, None, None], scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('BKGTS,BKSH->BKGTH', weights, v)
