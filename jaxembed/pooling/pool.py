"""Poolers without parameters: masked states [B,T,D] to one vector [B,D].

`pool` [B,T] is true where a token counts. Padding may stand on either side. A row
without any counting token gives zeros, never NaN.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxembed.types import Array


def mean(x: Array, pool: Array) -> Array:
  """Average of the counting tokens.  x [B,T,D], pool [B,T] -> [B,D] float32."""
  return _weighted(x, pool.astype(jnp.float32))


def mean_sqrt(x: Array, pool: Array) -> Array:
  """Sum of the counting tokens over the square root of their number.

  x [B,T,D], pool [B,T] -> [B,D] float32.
  """
  count = pool.astype(jnp.float32).sum(1, keepdims=True)
  return mean(x, pool) * jnp.sqrt(count)


def weighted_mean(x: Array, pool: Array, text: Array | None = None) -> Array:
  """Average with weights 1, 2, 3, ... along the tokens of `text` [B,T].

  A token outside `pool` keeps its number without counting: the weights of a text
  do not change when the prompt before it is left out. `text` None: `pool`.
  Muennighoff 2022 (SGPT, arXiv 2202.08904), section 3.1.
  """
  rank = jnp.cumsum(pool if text is None else text, axis=1, dtype=jnp.int32)
  return _weighted(x, jnp.where(pool, rank, 0).astype(jnp.float32))


def cls(x: Array, pool: Array) -> Array:
  """First counting token.  -> [B,D] float32."""
  rank = jnp.cumsum(pool, axis=1, dtype=jnp.int32)
  return _select(x, pool & (rank == 1))


def last(x: Array, pool: Array) -> Array:
  """Last counting token.  -> [B,D] float32."""
  rank = jnp.cumsum(pool, axis=1, dtype=jnp.int32)
  return _select(x, pool & (rank == pool.sum(1, keepdims=True)))


def maximum(x: Array, pool: Array) -> Array:
  """Largest value per channel over the counting tokens.  -> [B,D] float32."""
  x = jnp.where(pool[:, :, None], x.astype(jnp.float32), -jnp.inf)
  return jnp.where(pool.any(1)[:, None], x.max(1), 0.0)


POOLERS = {'mean': mean, 'cls': cls, 'last': last, 'mean_sqrt': mean_sqrt,
           'weighted_mean': weighted_mean, 'max': maximum}


def apply(modes: Sequence[str], x: Array, pool: Array, text: Array) -> Array:
  """The vectors of several poolers side by side.

  x [B,T,D]; pool, text [B,T]: tokens that count, and all of the text's
  -> [B,D * len(modes)] float32.
  """
  parts = [weighted_mean(x, pool, text) if mode == 'weighted_mean'
           else POOLERS[mode](x, pool) for mode in modes]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _weighted(x: Array, weights: Array) -> Array:
  """x [B,T,D], weights [B,T] -> [B,D] float32."""
  total = jnp.einsum('BTD,BT->BD', x.astype(jnp.float32), weights)
  return total / jnp.maximum(weights.sum(1), 1.0)[:, None]


def _select(x: Array, one: Array) -> Array:
  """x [B,T,D] at the single true position of `one` [B,T] -> [B,D] float32.

  A masked sum, not a gather: its gradient is no scatter, and the rows may be
  sharded. `where` keeps a non-finite value of another token out.
  """
  return jnp.where(one[:, :, None], x.astype(jnp.float32), 0.0).sum(1)
