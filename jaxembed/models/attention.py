"""Attention masks and multi-head attention."""

import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxembed.config import BackboneConfig, LoraConfig
from jaxembed.mesh import BATCH, spec
from jaxembed.models import rope
from jaxembed.models.layers import Linear, Norm, adapters
from jaxembed.types import Array

# Below every score, and no infinity: a row with no key at all (batch padding)
# gets equal weights instead of NaN.
_MASKED = -1e30


def attention_mask(mode: str, mask: Array, positions: Array, prefix: Array | None,
                   window: int, segment: Array | None = None) -> Array:
  """True where a query attends to a key.

  mask, positions [B,T] -> [B,1,1,T], or [B,1,T,T] for [row, head, query, key].

  Args:
    mode: 'causal', 'bidirectional', or 'prefix': causal, but the first
      `prefix` tokens of a row are attended to by all.
    mask: true on text; padding is never attended to.
    positions: index of each token; distances are differences of it.
    prefix: [B] int32, for mode 'prefix'.
    window: number of keys on the left (own one included) that a query attends
      to, and on the right when bidirectional; 0: no limit.
    segment: [B,T] int32, tokens attend to those of their own number alone.
  """
  keys = mask[:, None, :]
  if segment is not None:
    keys = keys & (segment[:, :, None] == segment[:, None, :])
  if mode == 'bidirectional' and not window:
    return keys[:, None]
  ahead = positions[:, None, :] - positions[:, :, None]  # key minus query
  if mode == 'bidirectional':
    return (keys & (abs(ahead) < window))[:, None]
  allowed = ahead <= 0
  if window:
    allowed &= ahead > -window
  if mode == 'prefix':
    inside = positions[:, None, :] < prefix[:, None, None]
    allowed |= inside & (abs(ahead) < window) if window else inside
  return (keys & allowed)[:, None]


def attend(q: Array, k: Array, v: Array, mask: Array, scale: float,
           softcap: float = 0.0, bias: Array | None = None) -> Array:
  """softmax(scale q k + bias) v over the keys that `mask` lets through, in float32.

  q [B,T,N,H]; k, v [B,S,K,H], key head j serving query heads jG..jG+G-1;
  mask [B,1,1|T,S]; bias [N,T,S] -> [B,T,N,H].
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
                      preferred_element_type=jnp.float32)
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    scores += lax.reshape(bias, (1, *scores.shape[1:]),
                          out_sharding=spec(None, 'tensor', None, None, None))
  scores = jnp.where(mask[:, :, None], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('BKGTS,BKSH->BKGTH', weights, v)
  return lax.reshape(out.transpose(0, 3, 1, 2, 4), (batch, length, heads, width),
                     out_sharding=spec(BATCH, None, 'tensor', None))


def relative_buckets(length: int, buckets: int, distance: int) -> np.ndarray:
  """T5's bidirectional buckets of key minus query.  -> [T,T] int32.

  Raffel et al. 2020 (arXiv 1910.10683): half the buckets per direction, half of
  those exact, the rest logarithmic up to `distance`.
  """
  ahead = np.arange(length)[None, :] - np.arange(length)[:, None]
  half, exact = buckets // 2, buckets // 4
  gap = np.abs(ahead)
  ratio = np.log(np.maximum(gap, 1).astype(np.float32) / np.float32(exact))
  log = exact + (ratio / np.float32(math.log(distance / exact))
                 * (half - exact)).astype(np.int32)
  bucket = np.where(gap < exact, gap, np.minimum(log, half - 1))
  return (bucket + half * (ahead > 0)).astype(np.int32)


class Attention(nn.Module):
  """Projections around `attend`.  x [B,T,D] -> [B,T,D]."""

  cfg: BackboneConfig
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, x: Array, mask: Array, cos_sin: tuple[Array, Array] | None,
               bias: Array | None) -> Array:
    """mask: of `attention_mask`; cos_sin: of rope.table; bias [N,T,T]."""
    cfg = self.cfg

    def linear(name, features, split, bias):
      return Linear(features, split, bias, adapters(self.lora, self, name), name=name)

    def heads(name, count):
      y = linear(name, count * cfg.head_dim, 'out', cfg.qkv_bias)(x)
      return lax.reshape(y, (*x.shape[:2], count, cfg.head_dim),
                         out_sharding=spec(BATCH, None, 'tensor', None))

    q = heads('q', cfg.num_heads)
    k, v = heads('k', cfg.num_kv_heads), heads('v', cfg.num_kv_heads)
    if cfg.qk_norm:
      q, k = Norm(cfg, name='q_norm')(q), Norm(cfg, name='k_norm')(k)
    if cos_sin is not None:
      q, k = rope.rotate(q, *cos_sin), rope.rotate(k, *cos_sin)
    scale = cfg.query_scale or 1.0 / math.sqrt(cfg.head_dim)
    out = attend(q, k, v, mask, scale, cfg.softcap, bias)
    out = lax.reshape(out, (*x.shape[:2], cfg.num_heads * cfg.head_dim),
                      out_sharding=spec(BATCH, None, 'tensor'))
    return linear('o', cfg.dim, 'in', cfg.out_bias)(out)
