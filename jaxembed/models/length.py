"""A length method put on a model: checked, filled in, its parameters made.

`configure` and `parameters` are a transform of (cfg, params) to those of a model that
reads longer texts; what comes back is an ordinary model.
"""

import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from jaxembed.config import LengthConfig, ModelConfig
from jaxembed.config.length import METHODS
from jaxembed.mesh import reshard
from jaxembed.models import clex, length_rule
from jaxembed.types import Params

_ROTARY = ('ntk', 'dynamic_ntk', 'yarn', 'theta', 'dprope', 'self_extend',
           'random_scale', 'clex')
_TABLE = ('grouped', 'recurrent')  # whose positions no table bounds
# What the rotary frequencies of a model can be stretched by once.
_STRETCHES = ('interpolate', 'ntk', 'dynamic_ntk', 'yarn', 'theta', 'dprope',
              'random_scale', 'clex')
_SCALES = {'random_scale': 20, 'clex': 16}


def extend(params: Params, cfg: ModelConfig, length: LengthConfig, key: Array
           ) -> tuple[Params, ModelConfig]:
  """The model that reads texts of `length.target` tokens by a method.

  key: draws the parameters of clex; others need none.

  Raises:
    ValueError: as `configure`.
  """
  wanted = configure(cfg, length)
  return parameters(params, cfg, wanted, key), wanted


def configure(cfg: ModelConfig, length: LengthConfig) -> ModelConfig:
  """`cfg` with a length method, its settings filled in from the model.

  max_length becomes the target, but for parallel windows, whose pieces are as long as
  texts were before.

  Raises:
    ValueError: the family cannot take the method, or it does not reach the target;
      with the remedy.
  """
  if cfg.length is not None:
    if _filled(cfg, length) == cfg.length:
      return cfg
    raise ValueError(f'the model has the length method {cfg.length.method!r} already; '
                     'put another on the model that was before it')
  _check_family(cfg, length)
  length = _filled(cfg, length)
  if length.method == 'interpolate' and cfg.backbone.position == 'learned':
    if length.target % length.original:
      raise ValueError(
          f'length target {length.target} is no multiple of {length.original} rows of '
          'the table of positions, between which new rows stand; choose one')
    cfg = dataclasses.replace(cfg, backbone=dataclasses.replace(
        cfg.backbone, max_positions=length.target))
  most = cfg.max_length if length.method == 'windows' else length.target
  wanted = dataclasses.replace(cfg, length=length, max_length=most)
  table = longest(wanted)
  if table is not None and most > table:
    raise ValueError(f'the model has embeddings of {table} positions, and the length '
                     f'method {length.method!r} no more, for texts of {most} tokens; '
                     'choose interpolate, grouped, recurrent or windows')
  return wanted


def parameters(params: Params, before: ModelConfig, cfg: ModelConfig, key: Array
               ) -> Params:
  """Those of `cfg` from those of the model as it was `before` the length method."""
  length, first = cfg.length, before.backbone.position_offset
  if length is None or before.length is not None:
    return params
  if length.method == 'clex':
    width = cfg.backbone.rope_width
    dtype = params['backbone']['embed']['token'].dtype
    made = jax.tree.map(lambda x: x.astype(dtype), clex.init(key, width))
    return {**params, 'length': made}
  if cfg.backbone.max_positions == before.backbone.max_positions:
    return params
  embed = params['backbone']['embed']
  table = reshard(jnp.asarray(embed['position']), None, None)
  wide = jnp.concatenate([table[:first], _between(
      table[first:first + length.original], length.target // length.original)])
  return {**params, 'backbone': {**params['backbone'], 'embed': {
      **embed, 'position': reshard(wide, None, 'fsdp')}}}


def longest(cfg: ModelConfig) -> int | None:
  """The most tokens of a text that the model has positions for; None: any number."""
  if cfg.backbone.position != 'learned' or (
      cfg.length is not None and cfg.length.method in _TABLE):
    return None
  return cfg.backbone.max_positions


def frozen_rows(cfg: ModelConfig) -> tuple[int, int]:
  """(n, step): positions 0, step, .., n of them, are not trained."""
  length = cfg.length
  if (length is None or length.method != 'interpolate' or not length.frozen
      or cfg.backbone.position != 'learned'):
    return 0, 1
  return length.original, length.target // length.original


def exported(cfg: ModelConfig) -> ModelConfig:
  """`cfg` as other libraries can be told of it, by rope_parameters and sizes.

  Raises:
    ValueError: they have no word for the method.
  """
  length = cfg.length
  if length is None:
    return cfg
  told = f'the length method {length.method!r}'
  table = cfg.backbone.position == 'learned'
  if length.temperature:
    told, here = 'the temperature of the length method', False
  elif table:
    here = length.method == 'interpolate'
  else:
    # Of transformers' dynamic scaling a text's vector depends on the texts before it.
    here = length.method in _STRETCHES and length.method not in ('clex', 'dynamic_ntk')
  if here and length.texts == 'long':  # there the longest of a batch decides for all
    told, here = told + " with texts='long'", False
  if not here:
    raise ValueError(
        f"{told} has no place in other libraries' settings; keep the run, and load it "
        'with Embedder.load, or export the model without it. What can be exported: '
        + ("interpolate with texts='all'" if table else
           "interpolate, ntk, yarn, theta, dprope and random_scale, with texts='all'"))
  backbone = dataclasses.replace(
      length_rule.backbone(cfg), max_positions=length.target)
  return dataclasses.replace(cfg, backbone=backbone, length=None)


def _check_family(cfg: ModelConfig, length: LengthConfig) -> None:
  b, method = cfg.backbone, length.method
  if method in _ROTARY and b.position != 'rope':
    raise ValueError(
        f'the length method {method!r} changes rotary positions, and {b.family} has '
        f"{'a table of positions' if b.position == 'learned' else 'none'}; choose "
        + ('interpolate, grouped, recurrent or windows' if b.position == 'learned'
           else 'windows'))
  if method in _TABLE and b.position != 'learned':
    raise ValueError(
        f'the length method {method!r} is for tables of positions, and {b.family} has '
        'rotary ones; choose self_extend, interpolate, ntk, yarn or windows')
  if method == 'interpolate' and b.position not in ('rope', 'learned'):
    raise ValueError(f'{b.family} has no positions to interpolate; choose windows')
  if method in _STRETCHES and b.rope_scaling is not None:
    raise ValueError(
        f'the length method {method!r} stretches rotary frequencies, and those of the '
        f'model are by {b.rope_scaling.kind} already; choose self_extend or windows')
  if method in ('ntk', 'dynamic_ntk', 'clex') and (b.rope_dim or b.head_dim) == 2:
    raise ValueError(f'the length method {method!r} needs heads that rotate more than '
                     '2 channels; choose interpolate')


def _filled(cfg: ModelConfig, length: LengthConfig) -> LengthConfig:
  """`length` with what it leaves to the model and to the method."""
  b, method = cfg.backbone, length.method
  if method == 'windows':
    most = cfg.max_length
  else:
    most = b.rope_scaling.original_positions if b.rope_scaling else b.max_positions
  original = length.original or most
  if b.position == 'learned' and original > most and method != 'none':
    raise ValueError(f'length original {original} is more than the {most} positions '
                     'that the model has')
  if length.target <= original:
    raise ValueError(f'length target {length.target} is not more than the '
                     f'{original} tokens of training (original); no method is needed')
  table = b.position == 'learned'
  filled: dict[str, Any] = {'original': original}
  if 'texts' in METHODS[method]:
    filled['texts'] = length.texts or ('long' if table else 'all')
  if 'scales' in METHODS[method]:
    filled['scales'] = length.scales or _SCALES[method]
  if method == 'self_extend':
    filled |= _groups(length, original)
  return dataclasses.replace(length, **filled)


def _groups(length: LengthConfig, original: int) -> dict[str, int]:
  """window and group of self_extend, by which the target is reached."""
  window = length.window or max(original // 8, 1)
  if window >= original:
    raise ValueError(f'length window {window} is not less than the {original} tokens '
                     'of training (original)')
  fewest = next(g for g in range(2, length.target + 1)
                if (length.target - 1) // g + window - window // g < original)
  if 0 < length.group < fewest:
    raise ValueError(
        f'length group {length.group} and window {window} reach fewer than '
        f'{length.target} tokens; choose group={fewest} or more')
  return {'window': window, 'group': length.group or fewest}


def _between(table: Array, step: int) -> Array:
  """Rows 0, step, 2*step, .. are those of `table`, others between them; behind the
  last they are the last.  [n,D] -> [n*step,D]."""
  after = jnp.concatenate([table[1:], table[-1:]])
  share = jnp.arange(step, dtype=jnp.float32)[:, None] / step
  low, high = (x[:, None].astype(jnp.float32) for x in (table, after))
  # Exactly the row of the table where the share is 0.
  wide = jnp.where(share == 0, low, low * (1 - share) + high * share)
  return wide.reshape(-1, table.shape[1]).astype(table.dtype)
