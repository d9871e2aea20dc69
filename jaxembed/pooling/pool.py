"""Mean, cls, last-token, max and weighted-mean pooling: [B,T,D] to [B,D].

`pool` [B,T] is true where a token counts. Padding may stand on either side. A row
without any counting token gives zeros, never NaN.
"""

from jax import Array
import jax.numpy as jnp

from jaxembed.mesh import axes_of, spec, split_tokens, tokens_axis
from jaxembed.pooling.head import Head, Mode, of_each_text


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
  here = split_tokens(pool, x)[:, :, None]
  x = jnp.where(here, x.astype(jnp.float32), -jnp.inf)
  return jnp.where(pool.any(1)[:, None], x.max(1), 0.0)


POOLERS = {'mean': mean, 'cls': cls, 'last': last, 'mean_sqrt': mean_sqrt,
           'weighted_mean': weighted_mean, 'max': maximum}


def _head(kind: str, words: str, mode: str, key: str) -> Head:
  def apply(params, cfg, states):
    del params, cfg
    pooler = POOLERS[kind]
    if kind != 'weighted_mean':  # the one that asks where the text begins
      return of_each_text(lambda x, pool, text: pooler(x, pool), states)
    return of_each_text(pooler, states)

  return Head(kind=kind, apply=apply, words=words, splits=True,
              mode=Mode(mode, f'pooling_mode_{key}'))


# In the order in which sentence-transformers puts several side by side.
HEADS = (
    _head('cls', 'its first token', 'cls', 'cls_token'),
    _head('max', 'the maximum over its tokens', 'max', 'max_tokens'),
    _head('mean', 'the mean of its tokens', 'mean', 'mean_tokens'),
    _head('mean_sqrt', 'the sum of its tokens over the square root of their number',
          'mean_sqrt_len_tokens', 'mean_sqrt_len_tokens'),
    _head('weighted_mean', 'a position-weighted mean of its tokens', 'weightedmean',
          'weightedmean_tokens'),
    _head('last', 'its last token', 'lasttoken', 'lasttoken'),
)


def _weighted(x: Array, weights: Array) -> Array:
  """x [B,T,D], weights [B,T] -> [B,D] float32."""
  rows = spec(axes_of(x)[0], None) if tokens_axis() else None
  total = jnp.einsum('BTD,BT->BD', x.astype(jnp.float32), split_tokens(weights, x),
                     out_sharding=rows)  # all-reduce over sequence
  return total / jnp.maximum(weights.sum(1), 1.0)[:, None]


def _select(x: Array, one: Array) -> Array:
  """x [B,T,D] at the single true position of `one` [B,T] -> [B,D] float32.

  A masked sum, not a gather: its gradient is no scatter, and the rows may be
  sharded. `where` keeps a non-finite value of another token out.
  """
  one = split_tokens(one, x)[:, :, None]
  return jnp.where(one, x.astype(jnp.float32), 0.0).sum(1)
