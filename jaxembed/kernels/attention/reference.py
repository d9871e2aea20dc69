"""Attention by its formula, with all scores at once."""

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed.functional import accumulator
from jaxembed.kernels.attention.pattern import Pattern, by_distance, visible
from jaxembed.mesh import BATCH, spec
from jaxembed.types import Array

# Below every score, and no infinity: a row with no key at all (padding) gets equal
# weights instead of NaN.
MASKED = -1e30


def attend(q: Array, k: Array, v: Array, pattern: Pattern, *, scale: float,
           softcap: float = 0.0, bias: Array | None = None,
           pairs: Array | None = None) -> jax.Array:
  """softmax(scale q k + bias) v over the keys of `pattern`, in float32.

  q [B,T,N,H]; k, v [B,T,K,H], key head j serving query heads jG..jG+G-1;
  bias [N,2T-1], of distances 1-T to T-1; pairs [B,N,T,T] -> [B,T,N,H].
  """
  batch, length, heads, width = q.shape
  groups = k.shape[2]
  q = lax.reshape(q, (batch, length, groups, heads // groups, width),
                  out_sharding=spec(BATCH, None, 'tensor', None, None))
  # Heads before tokens: plain batched matrix products, which a CPU does twice as
  # fast as ones that stride over heads.
  q = q.transpose(0, 2, 3, 1, 4) * jnp.asarray(scale, q.dtype)
  k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
  scores = jnp.einsum('BKGTH,BKSH->BKGTS', q, k,
                      preferred_element_type=accumulator(q.dtype))
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    bias = by_distance(bias, length, length)
    scores += lax.reshape(bias, (1, *scores.shape[1:]),
                          out_sharding=spec(None, 'tensor', None, None, None))
  if pairs is not None:
    scores += lax.reshape(pairs, scores.shape,
                          out_sharding=spec(BATCH, 'tensor', None, None, None))
  scores = jnp.where(_mask(pattern)[:, None, None], scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('BKGTS,BKSH->BKGTH', weights, v)
  return lax.reshape(out.transpose(0, 3, 1, 2, 4), (batch, length, heads, width),
                     out_sharding=spec(BATCH, None, 'tensor', None))


def _mask(pattern: Pattern) -> jax.Array:
  """[B,T,T] or [B,1,T] bool."""
  place = jnp.arange(pattern.text.shape[1], dtype=jnp.int32)
  return visible(pattern.text, pattern.text, place, place, pattern.prefix,
                 pattern.causal, pattern.limit, pattern.packed)
