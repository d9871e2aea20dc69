"""Length methods as data: positions and frequencies of a text of n tokens.

`rule` turns a model's LengthConfig and the length of each text into what the layers
read; they know no method.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxembed.config import BackboneConfig, LengthConfig, ModelConfig, RopeScaling
from jaxembed.mesh import BATCH, reshard, spec, split_tokens
from jaxembed.models import clex, dprope, positions, rope
from jaxembed.types import Array, Params, Tokens

# random_scale: so many first tokens keep their places, for which the offset of the
# others is then seen at all: rotations tell differences alone.
_SINKS = 4
ALL_NEAR = 2**30
Rotation = tuple[jax.Array, jax.Array]  # cos and sin [B,T,1,H/2]


class Rule(NamedTuple):
  """What texts read of their positions. Shapes broadcast to [B,T]."""

  ids: Array  # rows of a table of positions, or rotary positions
  freqs: Array | None  # inverse frequencies, [H/2] or [B,T,H/2]
  factor: float  # on cos and sin (YaRN's attention factor)
  query_scale: Array | None  # on queries (by their place, or the text's length)
  near: Array | None  # self_extend: distances below it are exact
  grouped: Array | None  # self_extend: positions of the side that is behind
  shifted: Array | None  # self_extend: of the side that is ahead


class Distant(NamedTuple):
  """SelfExtend's second pair of rotations (kernels.attention.Distant has the third)."""

  near: Array  # [B,T] int32
  grouped: Rotation
  shifted: Rotation


class Layout(NamedTuple):
  """Positions of rows of tokens, as layers read them."""

  index: Array  # [B,T] int32, places of tokens in their texts
  ids: Array  # [B,T] int32, rows of a table of positions
  rotation: Rotation | None
  local: Rotation | None  # of windowed layers, where theirs is another
  query_scale: Array | None  # [B,T,1,1]
  distant: Distant | None


def layout(cfg: ModelConfig, tokens: Tokens, *, params: Params | None = None,
           key: Array | None = None) -> Layout:
  """Of rows of tokens; key: of training, where methods draw at random."""
  b = cfg.backbone
  index = positions.of_tokens(b, tokens)
  found = rule(cfg, index, positions.counts(tokens), params=params, key=key)
  ids = found.ids
  if b.position == 'learned':  # padding may stand where no position is
    ids = jnp.where(tokens.mask, ids, jnp.minimum(ids, 0))
  local = distant = None
  if any(b.windowed_layers) and b.local_rope_theta and b.position == 'rope':
    local = _rotation(
        rope.frequencies(b.rope_dim or b.head_dim, b.local_rope_theta), index, 1.0)
  if found.near is not None:
    grouped, shifted = (_rotation(found.freqs, x, found.factor)
                        for x in (found.grouped, found.shifted))
    assert grouped is not None and shifted is not None  # with near
    distant = Distant(found.near, grouped, shifted)
  scale = found.query_scale
  return Layout(
      index, ids, _rotation(found.freqs, found.ids, found.factor), local,
      None if scale is None else split_tokens(jnp.asarray(scale))[:, :, None, None],
      distant)


def rule(cfg: ModelConfig, index: Array, count: Array, *,
         params: Params | None = None, key: Array | None = None) -> Rule:
  """What tokens read that stand at `index` of texts of `count` tokens.

  index, count: [B,T] int32.
  params: 'length' of a model with the method clex.
  key: of training, where random_scale and clex draw and theta is the model's own.
  """
  length, own = cfg.length, backbone(cfg, training=key is not None)
  ids, freqs, factor = index, None, 1.0
  scale = near = grouped = shifted = None
  if own.query_growth:
    steps = (index // own.query_growth_every).astype(jnp.float32)
    scale = 1 + own.query_growth * jnp.log1p(steps)
  if own.position == 'rope' and (not own.rope_layers or any(own.rope_layers)):
    freqs = rope.frequencies(own.rope_width, own.rope_theta, own.rope_scaling, count)
    factor = own.rope_scaling.attention_factor if own.rope_scaling else 1.0
  if length is None:
    return Rule(ids, freqs, factor, scale, None, None, None)
  if own.position == 'learned':
    ids = jnp.where(index < 0, index, _rows(length, index, count))
  if length.method == 'random_scale' and key is not None:
    ids = _scaled(length, index, key)
  if length.method == 'clex':
    ids, freqs = _clex(cfg, index, count, params, key)
  if length.method == 'self_extend':
    far = length.window - length.window // length.group
    near = jnp.where(count > length.original, length.window, ALL_NEAR)
    grouped = index // length.group
    shifted = grouped + far
  if length.temperature:
    warm = jnp.maximum(1.0, jnp.log(jnp.maximum(count, 1)) / math.log(length.original))
    scale = warm if scale is None else scale * warm
  return Rule(ids, freqs, factor, scale, near, grouped, shifted)


def backbone(cfg: ModelConfig, *, training: bool = False) -> BackboneConfig:
  """`cfg.backbone` with the rotary base and scaling of its length method.

  training: as texts are read then, if that differs.
  """
  b, length = cfg.backbone, cfg.length
  if length is None or b.position != 'rope' or (
      training and length.method in ('theta', 'random_scale')):
    return b
  scale, width = length.target / length.original, b.rope_width
  scaling = functools.partial(
      RopeScaling, factor=scale, original_positions=length.original)
  if length.method == 'yarn':
    found = scaling(kind='yarn', attention_factor=0.1 * math.log(scale) + 1.0)
  elif length.method == 'dynamic_ntk':
    found = scaling(kind='dynamic')
  elif length.method == 'random_scale':
    found = RopeScaling(kind='linear', factor=scale)
  elif length.method not in _DIVISORS:
    return b
  elif length.texts == 'long' or length.method == 'dprope':
    divisors = tuple(map(float, _DIVISORS[length.method](length, width, b.rope_theta)))
    same = (1.0,) * len(divisors)
    found = scaling(kind='longrope', long_factors=divisors,
                    short_factors=same if length.texts == 'long' else divisors)
  elif length.method == 'interpolate':
    found = RopeScaling(kind='linear', factor=scale)
  else:
    theta = length.theta or b.rope_theta * scale**(width / (width - 2))
    return dataclasses.replace(b, rope_theta=theta)
  return dataclasses.replace(b, rope_scaling=found)


def _evens(width: int) -> np.ndarray:
  return np.arange(0, width, 2) / width


# What each method divides the frequencies by.  (length, H, base) -> [H/2]
_DIVISORS = {
    'interpolate': lambda length, width, theta: np.full(
        width // 2, length.target / length.original),
    'ntk': lambda length, width, theta: (length.target / length.original)**(
        width / (width - 2) * _evens(width)),
    'theta': lambda length, width, theta: (length.theta / theta)**_evens(width),
    'dprope': lambda length, width, theta: dprope.factors(
        theta**-_evens(width), length.original, length.target),
}


def _rows(length: LengthConfig, index: Array, count: Array) -> Array:
  """Rows of a table of positions."""
  if length.method == 'grouped':
    return index // -(-count // length.original)
  if length.method == 'recurrent':
    return index % length.original
  if length.method == 'interpolate' and length.texts == 'long':
    step = length.target // length.original
    return jnp.where(count <= length.original, index * step, index)
  return index


def _scaled(length: LengthConfig, index: Array, key: Array) -> Array:
  """Rotary positions of rows at random scales, moved at random.  [B,T] float32

  E2-LLM (arXiv 2401.06951), section 3. The offset is at most what keeps the places of
  a text of `original` tokens within those of training.
  """
  first, second = jax.random.split(key)
  rows = (index.shape[0], 1)
  scale = reshard(jax.random.randint(first, rows, 1, length.scales + 1), BATCH, None)
  share = reshard(jax.random.uniform(second, rows), BATCH, None)
  offset = jnp.floor(share * ((scale - 1) * length.original + 1))
  moved = index + jnp.where(index < _SINKS, 0.0, offset)
  return moved / scale


def _clex(cfg: ModelConfig, index: Array, count: Array, params: Params | None, key
          ) -> tuple[Array, Array]:
  """(rotary positions [B,T], inverse frequencies [B,T,H/2])."""
  length, b = cfg.length, cfg.backbone
  assert length is not None and params is not None
  grid = clex.frequencies(jax.tree.map(lambda x: reshard(x, None, None), params),
                          b.rope_width, b.rope_theta, length.scales)
  if key is not None:
    scale, ids = clex.draw(key, reshard(index, None, None), reshard(count, None, None),
                           length.scales)
    scale = reshard(scale, BATCH, None) + 0 * index
    index = reshard(ids, BATCH, None)
  else:
    scale = length.fixed_scale or jnp.minimum(
        -(-count // length.original), length.scales)
    scale = scale + 0 * index
  freqs = grid.at[scale - 1].get(out_sharding=spec(BATCH, None, None))
  return index, freqs


def _rotation(freqs, ids: Array | None, factor: float) -> Rotation | None:
  if freqs is None or ids is None:
    return None
  return jax.tree.map(split_tokens, rope.table(jnp.asarray(freqs), ids, factor))
