"""Attention on a TPU: JAX's splash attention, with tiles that texts share nothing with
left out.

The library's kernel takes its masks as functions of places, its segment ids as arrays,
and a table of which tiles of scores are computed. The table is made here, of the very
texts in a row, so that packed rows pay for no scores between texts, and rows for none
of padding.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
  splash_attention_mask_info as mask_info,
)
import jax.numpy as jnp

from jaxembed.kernels.attention import blockwise
from jaxembed.kernels.attention.pattern import ATTENTION, Pattern
from jaxembed.types import Array

# Lengths are padded to a multiple of it, and tiles are this or a multiple.
LANES = 128
_TILES = (512, 256, 128)
# Added to the place of a query that its window does not hold for.
_FAR = 2**24


@dataclasses.dataclass(frozen=True)
class _Seen:
  """What the kernel asks of a tile, beside its texts: places of queries and keys."""

  causal: bool
  window: int

  def __call__(self, query: Any, key: Any) -> Any:
    unlimited, query = query >= _FAR, query & (_FAR - 1)
    seen = query >= key if self.causal else None
    if self.window:
      near = (abs(query - key) < self.window) | unlimited
      seen = near if seen is None else seen & near
    return seen


def attend(q: Array, k: Array, v: Array, pattern: Pattern, *, scale: float,
           softcap: float = 0.0, first: Array | int = 0, interpret: bool = False
           ) -> jax.Array:
  """As blockwise.attend, for patterns without a prefix and scores without a bias.

  interpret: compute the kernels on another platform, slowly.
  """
  length, span = q.shape[1], k.shape[1]
  t, s = (-(-n // LANES) * LANES for n in (length, span))
  first = jnp.asarray(first, jnp.int32)
  q = _heads_first(q * jnp.asarray(scale, q.dtype), t)
  text = jnp.pad(pattern.text, ((0, 0), (0, s - span)), constant_values=-1)
  own = lax.dynamic_slice_in_dim(pattern.text, first, length, axis=1)
  row = functools.partial(_row, pattern, softcap, interpret, first)
  arrays = (q, _heads_first(k, s), _heads_first(v, s),
            jnp.pad(own, ((0, 0), (0, t - length)), constant_values=-1), text)
  run = functools.partial(lax.map, lambda a: row(*a))
  if q.dtype == jnp.float32:
    run = _as_exact_backwards(run)
  out = run(arrays)[:, :, :length].swapaxes(1, 2)
  return jnp.where(own[:, :, None, None] >= 0, out, 0)


def _heads_first(x: Array, length: int) -> jax.Array:
  """[B,T,N,H] -> [B,N,length,H], padded with zeros."""
  x = x.swapaxes(1, 2)
  return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))


def _row(pattern: Pattern, softcap: float, interpret: bool, first, q, k, v, own, text):
  """q [N,T,H]; k, v [K,S,H]; own [T] and text [S] the texts of queries and keys."""
  queries, keys = (next(n for n in _TILES if x.shape[1] % n == 0) for x in (q, k))
  place = first + jnp.arange(q.shape[1], dtype=jnp.int32)
  if pattern.windowed is not None:
    place += jnp.where(pattern.windowed, 0, _FAR)
  geometry = pattern.causal or pattern.window
  visited = _visited(pattern, first, own, text, queries, keys)
  # Where tiles are left out, what is fetched is what the next one needs.
  columns = _next_visited(visited, 1)
  rows = _next_visited(visited, 0)

  def info(following):
    return mask_info.MaskInfo(
        data_next=following[None], mask_next=None, block_mask=visited[None] * 2,
        partial_mask_blocks=None, q_sequence=place if geometry else None)

  kernel = splash.SplashAttentionKernel(
      info(columns), info(columns), info(rows), is_mqa=False, save_residuals=False,
      block_sizes=splash.BlockSizes(
          block_q=queries, block_kv=keys, block_q_dkv=queries, block_kv_dkv=keys,
          block_q_dq=queries, block_kv_dq=keys),
      mask_value=splash.DEFAULT_MASK_VALUE, attn_logits_soft_cap=softcap or None,
      residual_checkpoint_name=ATTENTION, interpret=interpret,
      mask_function=_Seen(pattern.causal, pattern.window) if geometry else None)
  return kernel(q, k, v, splash.SegmentIds(own, text))


def _visited(pattern: Pattern, first, own, text, queries: int, keys: int) -> jax.Array:
  """[T/queries,S/keys] int32, 1 where a tile is computed. Every query tile has one:
  what divides by the sum of no weights is no number."""
  limit = pattern.limit
  share = blockwise.shared_tiles(
      own[None], text[None], first, queries, keys, pattern.causal,
      None if limit is None else jnp.asarray(limit, jnp.int32))[0]
  return (share | (~share.any(1, keepdims=True)
                   & (jnp.arange(share.shape[1]) == 0))).astype(jnp.int32)


def _next_visited(visited, axis: int) -> jax.Array:
  """Of every tile, along an axis, the next one that is computed, itself included; the
  last one behind it."""
  count = visited.shape[axis]
  index = jnp.where(visited > 0, lax.broadcasted_iota(jnp.int32, visited.shape, axis),
                    count)
  following = lax.cummin(index, axis=axis, reverse=True)
  last = jnp.where(visited > 0, index, 0).max(axis, keepdims=True)
  return jnp.minimum(following, last)


def _as_exact_backwards(run):
  """`run` whose gradient has the precision of its value, wherever it is taken."""
  settings: Any = jax.config
  precision = settings.jax_default_matmul_precision

  @jax.custom_vjp
  def exact(arrays):
    return run(arrays)

  def forward(arrays):
    return jax.vjp(run, arrays)

  def backward(pullback, g):
    scope = contextlib.nullcontext() if precision is None else (
        jax.default_matmul_precision(precision))
    with scope:
      return pullback(g)

  exact.defvjp(forward, backward)
  return exact
