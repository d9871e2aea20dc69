"""Attention on an NVIDIA GPU: cuDNN's, by jax.nn.dot_product_attention.

cuDNN takes the lengths of texts that begin their rows. Rows of other kinds are put into
this order and back; packed rows bring a mask, which is as large as a head's scores.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed.kernels.attention.pattern import Pattern, visible
from jaxembed.types import Array

# The longest packed rows whose [T,T] masks are worth it.
LONGEST_PACKED = 2048


def attend(q: Array, k: Array, v: Array, pattern: Pattern, *, scale: float,
           implementation: Any = 'cudnn') -> jax.Array:
  """As blockwise.attend, for what `api.choose` leaves to it: 16 bits, no prefix,
  windows of causal patterns alone.

  implementation: of jax.nn.dot_product_attention.
  """
  run: Any = functools.partial(
      jax.nn.dot_product_attention, scale=scale, is_causal=pattern.causal,
      local_window_size=(pattern.window - 1, 0) if pattern.window else None,
      implementation=implementation)
  text = jnp.asarray(pattern.text)
  here = text >= 0
  if pattern.packed:
    place = jnp.arange(text.shape[1], dtype=jnp.int32)
    # Padding sees itself, so that no row of weights is empty.
    mask = visible(text, text, place, place, None, pattern.causal, pattern.limit,
                   packed=True)
    mask |= jnp.eye(text.shape[1], dtype=bool)
    out = run(q, k, v, mask=mask[:, None])
  else:
    count = here.sum(1, dtype=jnp.int32)

    def plain(q, k, v):
      return run(q, k, v, query_seq_lengths=count, key_value_seq_lengths=count)

    def reordered(q, k, v):
      order = jnp.argsort(~here, axis=1, stable=True)
      q, k, v = (_take(x, order) for x in (q, k, v))
      return _take(plain(q, k, v), jnp.argsort(order, axis=1))

    begins = (here == (jnp.arange(text.shape[1]) < count[:, None])).all()
    out = lax.cond(begins, plain, reordered, q, k, v)
  return jnp.where(here[:, :, None, None], out, 0)


def _take(x: Array, order: Array) -> jax.Array:
  return jnp.take_along_axis(x, order[:, :, None, None], axis=1)
