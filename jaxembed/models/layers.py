"""Projections, norms, embeddings and the feed-forward block.

Every matrix is stored two-dimensional, [in, out]. `fsdp` splits the side that
`tensor` does not; the fsdp pieces are gathered where the matrix is used, the
tensor pieces stay where they are.
"""

from flax import linen as nn
import jax
from jax import Array, lax
import jax.numpy as jnp
import numpy as np

from jaxembed import types
from jaxembed.config import BackboneConfig, LoraConfig
from jaxembed.functional import ACTIVATIONS, layer_norm, rms_norm
from jaxembed.mesh import (
  BATCH,
  along_last,
  axes_of,
  reshard,
  spec,
  split_tokens,
  tokens_axis,
)

INIT = nn.initializers.normal(0.02)


def adapters(lora: LoraConfig | None, parent: nn.Module, name: str
             ) -> LoraConfig | None:
  """`lora` for the projection `name` of `parent` where its targets match the path."""
  path = '/'.join(('backbone', *parent.path, name))
  return lora if lora is not None and lora.adapts(path) else None


class Linear(nn.Module):
  """x [B,T,in] -> [B,T,out]; with `lora`, the parameters `lora_a` and `lora_b` beside
  the kernel add a low-rank update (Hu et al. 2021, arXiv 2106.09685).

  `split` says which side of the kernel lies over the mesh axis 'tensor'. A
  kernel split on 'in' sums over 'tensor' (all-reduce).
  """

  features: int
  split: str  # 'in' | 'out' | 'none'
  bias: bool = False
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    rows, cols = {'in': ('tensor', None), 'out': (None, 'tensor'),
                  'none': (None, None)}[self.split]
    kernel = self.param('kernel', INIT, (width, self.features))
    kernel = reshard(kernel, rows, cols).astype(x.dtype)  # all-gather over fsdp
    y = jnp.einsum('...D,DF->...F', x, kernel,
                   out_sharding=spec(*axes_of(x)[:-1], cols))
    if self.lora is not None:
      y += self._update(self.lora, x, rows, cols)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += along_last(reshard(bias, cols).astype(x.dtype), y)
    return y

  def _update(self, lora: LoraConfig, x: Array, rows, cols) -> Array:
    rank = lora.rank
    down = self.param('lora_a', INIT, (x.shape[-1], rank))
    up = self.param('lora_b', nn.initializers.zeros, (rank, self.features))
    down, up = reshard(down, rows, None), reshard(up, None, cols)
    if lora.dropout and self.has_rng('dropout'):
      x = _dropout(x, lora.dropout, self.make_rng('dropout'))
    batch = axes_of(x)[:-1]
    low = jnp.einsum('...D,DR->...R', x, down.astype(x.dtype),
                     out_sharding=spec(*batch, None))
    y = jnp.einsum('...R,RF->...F', low, up.astype(x.dtype),
                   out_sharding=spec(*batch, cols))
    return y * jnp.asarray(lora.scale, x.dtype)


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, in float32.  [...,D] -> [...,D].

  Gemma stores scale - 1: `cfg.norm_offset` is added back.
  """

  cfg: BackboneConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    cfg, width = self.cfg, x.shape[-1]
    scale, bias = jnp.ones(width), None
    if cfg.norm_scale:
      fill = nn.initializers.constant(1.0 - cfg.norm_offset)
      scale = self.param('scale', fill, (width,)).astype(jnp.float32) + cfg.norm_offset
    if cfg.norm_bias:
      bias = self.param('bias', nn.initializers.zeros, (width,))
    norm = {'layer': layer_norm, 'rms': rms_norm}[cfg.norm]
    return norm(x, scale, bias, cfg.norm_eps)


class FeedForward(nn.Module):
  """down(act(gate(x)) * up(x)), or down(act(up(x))).  [B,T,D] -> [B,T,D]."""

  cfg: BackboneConfig
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    cfg = self.cfg
    act = ACTIVATIONS[cfg.activation]

    down_bias = cfg.ff_bias if cfg.down_bias is None else cfg.down_bias

    def linear(name, features, split, bias):
      lora = adapters(self.lora, self, name)
      return Linear(features, split, bias, lora, name=name)

    up = linear('up', cfg.ff_dim, 'out', cfg.ff_bias)(x)
    if cfg.gated:
      hidden = act(linear('gate', cfg.ff_dim, 'out', cfg.ff_bias)(x)) * up
    else:
      hidden = act(up)
    return linear('down', cfg.dim, 'in', down_bias)(hidden)


class LayerInput(nn.Module):
  """A layer's own reading of the embeddings, gated by its state: the per-layer inputs
  of Gemma 3n, without their table of tokens.  x [B,T,D] -> [B,T,D], to be added."""

  cfg: BackboneConfig
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, x: Array, embedded: Array, kernel: Array, scale: Array) -> Array:
    """embedded [B,T,D]: before the first layer; kernel [D,P]; scale [P]."""
    cfg = self.cfg
    read = jnp.einsum(
        'BTD,DP->BTP', embedded, reshard(kernel, None, 'tensor').astype(x.dtype),
        out_sharding=spec(BATCH, tokens_axis(), 'tensor'))
    read = rms_norm(read * cfg.dim**-0.5, scale, None, cfg.norm_eps)
    gate = Linear(cfg.layer_input_dim, 'out', False, adapters(self.lora, self, 'gate'),
                  name='gate')(x)
    return Linear(cfg.dim, 'in', False, adapters(self.lora, self, 'out'), name='out')(
        ACTIVATIONS[cfg.activation](gate) * read)


class Embedding(nn.Module):
  """Token, position and segment vectors, summed.  ids [B,T] -> [B,T,D].

  Token type ids are always 0; sentence pairs are not supported.
  """

  cfg: BackboneConfig
  dtype: str
  frozen: tuple[int, int] = (0, 1)  # (rows, step): positions 0, step, .. not trained

  @nn.compact
  def __call__(self, ids: Array, positions: types.Array) -> Array:
    cfg = self.cfg

    def table(name, rows):
      return self.param(name, INIT, (rows, cfg.embed_dim or cfg.dim))

    x = _lookup(table('token', cfg.vocab_size), ids, self.dtype)
    if cfg.embed_scale != 1.0:
      x = x * jnp.asarray(cfg.embed_scale, x.dtype)
    if cfg.position == 'learned':
      rows = _with_frozen(table('position', cfg.max_positions + cfg.position_offset),
                          cfg.position_offset, *self.frozen)
      # NaN for a place beyond the table, which is thus no other's vector.
      x += _lookup(rows, positions + cfg.position_offset, self.dtype, mode='fill')
    if cfg.type_vocab_size:
      kind = table('type', cfg.type_vocab_size)
      x += along_last(reshard(kind, None, None)[0].astype(self.dtype), x)
    if cfg.embed_norm:
      x = Norm(cfg, name='norm')(x)
    return Linear(cfg.dim, 'none', True, name='project')(x) if cfg.embed_dim else x


def _with_frozen(table: Array, first: int, count: int, step: int) -> Array:
  """`table` whose rows first, first + step, .., so many, have no gradient."""
  if not count:
    return table
  at = np.arange(len(table)) - first
  frozen = (at >= 0) & (at % step == 0) & (at < count * step)
  return jnp.where(frozen[:, None], lax.stop_gradient(table), table)


def _lookup(table: Array, ids: types.Array, dtype: str, mode: str = 'clip') -> Array:
  """table [V,D], ids [B,T] -> [B,T,D]."""
  table = reshard(table, None, None)  # all-gather over fsdp
  rows = table.at[split_tokens(jnp.asarray(ids))].get(
      mode=mode, out_sharding=spec(BATCH, tokens_axis(), None))
  return rows.astype(dtype)


def _dropout(x: Array, rate: float, key: Array) -> Array:
  """x [B,...] with a share `rate` of its elements zero and the others scaled up.

  The mask is a hash of (key, row, place in the row), so it is the same on every mesh,
  at a tenth of the work of jax.random's bits: XLA repeats that work in every use of
  the mask, and a 32-layer step took longer to compile for its bits than for the rest.
  """
  def places(shape, axis, target):
    return lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=target)

  one = (1,) * (x.ndim - 1)
  target = spec(BATCH, *(None for _ in one))
  seeds = jax.random.bits(key, (2,))
  row = places((x.shape[0], *one), 0, target)
  rows = _mix(row ^ seeds[0]), _mix(row + seeds[1])
  place = jnp.zeros((), jnp.uint32)
  for axis in range(1, x.ndim):
    place = place * jnp.uint32(x.shape[axis]) + places(
        (1, *x.shape[1:]), axis, spec(*(None for _ in x.shape)))
  bits = _mix(_mix(place ^ rows[0]) + rows[1])
  keep = bits >= jnp.uint32(min(rate * 2**32, 2**32 - 1))
  return jnp.where(keep, x / (1.0 - rate), 0)


def _mix(h: Array) -> Array:
  """A bijection of uint32 whose every output bit depends on every input bit
  (MurmurHash3's finaliser)."""
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> 16)
