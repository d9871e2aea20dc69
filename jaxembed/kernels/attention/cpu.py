"""Attention on a CPU: tiles of all keys where it can, those of blockwise elsewhere."""

import functools
from typing import Any, cast

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed.functional import accumulator
from jaxembed.kernels.attention import blockwise
from jaxembed.kernels.attention.pattern import Pattern
from jaxembed.kernels.attention.reference import MASKED
from jaxembed.types import Array

# Keys of a row up to which a tile holds them all, and the queries of such a tile in a
# row longer than _ONE_TILE. Beyond 8,192 keys a tile is no longer near the core.
ALL_KEYS, QUERIES, _ONE_TILE = 8192, 256, 512


def attend(q: Array, k: Array, v: Array, pattern: Pattern, *, scale: float,
           softcap: float = 0.0, bias: Array | None = None, first: Array | int = 0
           ) -> jax.Array:
  """As blockwise.attend, which also computes it where a gradient is asked for."""
  if (bias is not None or k.shape[1] > ALL_KEYS
      or not blockwise.same_keys(pattern, softcap, q.dtype)):
    return blockwise.attend(q, k, v, pattern, scale=scale, softcap=softcap, bias=bias,
                            first=first)
  return cast(Any, _all_keys)(scale, q, k, v, pattern, jnp.asarray(first, jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_keys(scale: float, q, k, v, pattern: Pattern, first) -> jax.Array:
  """Without a gradient: a head of a text after the other, by tiles of all keys.

  XLA's compiler makes one loop, over pieces in a core's cache, of a tile's scores,
  their maximum and the weights, if they are written as here: two-dimensional, nothing
  between the maximum and its use. Heads are read where they lie, not copied apart.
  """
  batch, length, heads, width = q.shape
  group = heads // k.shape[2]
  side = length if length <= _ONE_TILE else blockwise.side(length, QUERIES)
  total = -(-length // side) * side
  q = jnp.pad(q * jnp.asarray(scale, q.dtype),
              ((0, 0), (0, total - length), (0, 0), (0, 0)))
  some = jnp.any(pattern.text >= 0, 1)
  padding = jnp.where(pattern.text < 0, MASKED, 0.0).astype(accumulator(q.dtype))
  product = functools.partial(
      jnp.einsum, precision=blockwise.precision_of(q.dtype),
      preferred_element_type=accumulator(q.dtype))

  def head(i, found):
    b, n = i // heads, i % heads
    queries, keys, values = (
        lax.dynamic_slice(x, (b, 0, at, 0), (1, x.shape[1], 1, width))[0, :, 0]
        for x, at in ((q, n), (k, n // group), (v, n // group)))

    def tile(queries):
      s = product('TH,SH->TS', queries, keys) + padding[b]
      weights = jnp.exp(s - s.max(-1, keepdims=True))
      out = product('TS,SH->TH', weights.astype(v.dtype), values)
      return out / weights.sum(-1, keepdims=True)

    out = (tile(queries) if side == length else
           lax.map(tile, queries.reshape(-1, side, width)))
    out = jnp.where(some[b], out, 0).astype(q.dtype).reshape(1, total, 1, width)
    return lax.dynamic_update_slice(found, out, (b, 0, n, 0))

  return lax.fori_loop(0, batch * heads, head, jnp.zeros_like(q))[:, :length]


def _forward(scale: float, q, k, v, pattern: Pattern, first):
  return jax.vjp(lambda q, k, v: blockwise.attend(
      q, k, v, pattern, scale=scale, first=first), q, k, v)


def _backward(scale: float, transpose, g):
  del scale
  return *transpose(g), None, None


_all_keys.defvjp(_forward, _backward)
