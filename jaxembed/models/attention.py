"""Multi-head attention: projections around kernels.attention."""

from collections.abc import Mapping
import math
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import Array, lax
import jax.numpy as jnp
import numpy as np

from jaxembed.config import BackboneConfig, LoraConfig
from jaxembed.functional import rms_norm
from jaxembed.kernels.attention import Distant, Pattern, attend, by_row
from jaxembed.mesh import BATCH, reshard, spec, tokens_axis
from jaxembed.models import length_rule, rope
from jaxembed.models.layers import INIT, Linear, Norm, adapters
from jaxembed.models.length_rule import Rotation


def relative_buckets(length: int, buckets: int, distance: int) -> np.ndarray:
  """T5's bidirectional buckets of the distances 1-length to length-1, key minus query.
  -> [2*length-1] int32.

  Raffel et al. 2020 (arXiv 1910.10683): half the buckets per direction, half of
  those exact, the rest logarithmic up to `distance`.
  """
  ahead = np.arange(1 - length, length)
  half, exact = buckets // 2, buckets // 4
  gap = np.abs(ahead)
  ratio = np.log(np.maximum(gap, 1).astype(np.float32) / np.float32(exact))
  log = exact + (ratio / np.float32(math.log(distance / exact))
                 * (half - exact)).astype(np.int32)
  bucket = np.where(gap < exact, gap, np.minimum(log, half - 1))
  return (bucket + half * (ahead > 0)).astype(np.int32)


def relative_bias(cfg: BackboneConfig, table: Array, length: int) -> jax.Array:
  """table [buckets,N] -> terms of scores by distance, [N,2*length-1] float32."""
  index = relative_buckets(length, cfg.relative_buckets, cfg.relative_distance)
  bias = reshard(table, None, None)[index].astype(jnp.float32)
  return reshard(bias.T, 'tensor', None)


def alibi(heads: int, length: int) -> np.ndarray:
  """Terms of scores that fall with the distance, [N,2*length-1] float32.

  Press et al. 2022 (ALiBi, arXiv 2108.12409), the same in both directions: slopes
  2^(-8/n), 2^(-16/n), ... of the largest power of two n below `heads`, and for the
  other heads every second slope of 2n.
  """
  power = 2 ** int(math.log2(heads))
  slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
  more = 2.0 ** (-4.0 / power * np.arange(1, 2 * power + 1, 2))
  slopes = np.concatenate([slopes, more[:heads - power]])
  distance = np.abs(np.arange(1 - length, length))
  return -(slopes[:, None] * distance).astype(np.float32)


def log_buckets(length: int, buckets: int, distance: int) -> np.ndarray:
  """DeBERTa's buckets of the distances 1-length to length-1.  -> [2*length-1] int32.

  He et al. 2023 (DeBERTaV3, arXiv 2111.09543): half of the `buckets` of a direction
  exact, the others logarithmic up to `distance`. From 0, the farthest behind, to
  2*buckets-1.
  """
  ahead = np.arange(1 - length, length)
  half, gap = buckets // 2, np.abs(ahead).astype(np.float32)
  ratio = np.log(np.maximum(gap, 1) / np.float32(half)) / np.log(
      np.float32((distance - 1) / half))
  far = np.ceil(ratio * np.float32(half - 1)) + half
  return np.where(gap <= half, ahead, np.sign(ahead) * far).astype(np.int32)


def distance_rows(cfg: BackboneConfig, length: int) -> np.ndarray:
  """Rows of DeBERTa's table for the distances 1-length to length-1, query minus key.

  -> [2*length-1] int32 from 0 to 2*relative_buckets-1.
  """
  count = cfg.relative_buckets
  bucket = np.arange(1 - length, length)
  if cfg.relative_log:
    bucket = log_buckets(length, count, cfg.relative_distance)
  return np.clip(bucket + count, 0, 2 * count - 1).astype(np.int32)


class Rotations(NamedTuple):
  """What of positions a layer applies to queries and keys."""

  own: Rotation | None  # cos and sin [B,T,1,H/2]
  query_scale: Array | None = None  # [B,T,1,1]
  distant: length_rule.Distant | None = None  # of tokens that are far apart


class Attention(nn.Module):
  """Projections around `attend`.  x [B,T,D] -> [B,T,D]."""

  cfg: BackboneConfig
  lora: LoraConfig | None = None
  impl: str = 'auto'  # of attend

  @nn.compact
  def __call__(self, x: Array, pattern: Pattern, rotations: Rotations,
               bias: Array | None, distances: Array | None = None) -> Array:
    """bias [N,2T-1]: of attend, where the layers share it; distances [2S,D]: DeBERTa's
    vectors of them."""
    cfg = self.cfg

    def linear(name, features, split, bias):
      return Linear(features, split, bias, adapters(self.lora, self, name), name=name)

    projections = {}

    def heads(name, count):
      projections[name] = linear(name, count * cfg.head_dim, 'out', cfg.qkv_bias)
      y = projections[name](x)
      if cfg.qkv_clip:
        y = jnp.clip(y, -cfg.qkv_clip, cfg.qkv_clip)
      normed = cfg.qk_norm and name != 'v'
      if normed and cfg.qk_norm_heads == 'all':
        y = Norm(cfg, name=f'{name}_norm')(y)
      y = lax.reshape(y, (*x.shape[:2], count, cfg.head_dim),
                      out_sharding=spec(BATCH, tokens_axis(), 'tensor', None))
      if normed and cfg.qk_norm_heads == 'each':
        y = Norm(cfg, name=f'{name}_norm')(y)
      if cfg.v_norm and name == 'v':
        y = rms_norm(y, jnp.ones(cfg.head_dim), None, cfg.norm_eps)
      return y

    q = heads('q', cfg.num_heads)
    k, v = heads('k', cfg.num_kv_heads), heads('v', cfg.num_kv_heads)
    q, k, distant = _rotated(q, k, rotations)
    if cfg.relative_per_layer:
      table = self.param('relative', INIT, (cfg.relative_buckets, cfg.num_heads))
      bias = relative_bias(cfg, table, x.shape[1])
    scale = cfg.query_scale or 1.0 / math.sqrt(cfg.head_dim)
    pairs = None
    if distances is not None:
      if not cfg.disentangled_shared:
        projections |= {x: linear(f'pos_{x}', cfg.num_heads * cfg.head_dim, 'out', True)
                        for x, term in (('k', 'c2p'), ('q', 'p2c'))
                        if term in cfg.disentangled}
      pairs = _disentangled(cfg, q * scale, k * scale, distances, projections)
    out = attend(q, k, v, pattern, scale=scale, softcap=cfg.softcap, bias=bias,
                 pairs=pairs, distant=distant, impl=self.impl)
    out = lax.reshape(out, (*x.shape[:2], cfg.num_heads * cfg.head_dim),
                      out_sharding=spec(BATCH, tokens_axis(), 'tensor'))
    return linear('o', cfg.dim, 'in', cfg.out_bias)(out)


def _disentangled(cfg: BackboneConfig, q: Array, k: Array, distances: Array,
                  projections: Mapping[str, nn.Module]) -> jax.Array:
  """Terms of scores of contents and distances (He et al. 2021, DeBERTa, arXiv
  2006.03654, equation 4).  q, k [B,T,N,H], distances [2S,D] -> [B,N,T,T] float32."""
  length = q.shape[1]
  rows = distance_rows(cfg, length)

  def of_distances(name, rows):
    y = projections[name](distances[None])[0]
    y = lax.reshape(y, (y.shape[0], cfg.num_heads, cfg.head_dim),
                    out_sharding=spec(None, 'tensor', None))
    return y[rows]

  def products(x, table):  # with all distances -> with those to each token
    y = jnp.einsum('BTNH,ENH->BNTE', x, table, preferred_element_type=jnp.float32,
                   out_sharding=spec(BATCH, 'tensor', None, None))
    return by_row(y)

  terms = jnp.zeros((), jnp.float32)
  if 'c2p' in cfg.disentangled:  # key minus query ascends with the key
    terms = terms + products(q, of_distances('k', rows[::-1]))
  if 'p2c' in cfg.disentangled:  # query minus key ascends with the query
    terms = terms + products(k, of_distances('q', rows)).swapaxes(2, 3)
  return terms


def _rotated(q: Array, k: Array, rotations: Rotations
             ) -> tuple[Array, Array, Distant | None]:
  """Queries and keys at their positions, and for tokens that are far apart."""
  if rotations.query_scale is not None:
    q = q * rotations.query_scale.astype(q.dtype)
  if rotations.own is None:
    return q, k, None
  far = rotations.distant
  near = rope.rotate(q, *rotations.own), rope.rotate(k, *rotations.own)
  if far is None:
    return *near, None
  return *near, Distant(
      far.near, rope.rotate(q, *far.shifted), rope.rotate(k, *far.grouped),
      rope.rotate(q, *far.grouped), rope.rotate(k, *far.shifted))
