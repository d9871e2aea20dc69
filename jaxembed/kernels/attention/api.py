"""The one door to attention: which implementation runs where."""

import functools
from typing import Any, NamedTuple, cast

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxembed.kernels import dispatch
from jaxembed.kernels.attention import (
  blockwise,
  cpu,
  distant as far,
  gpu,
  reference,
  tpu,
)
from jaxembed.kernels.attention.distant import Distant
from jaxembed.kernels.attention.pattern import Pattern
from jaxembed.mesh import BATCH, explicit, sequence_devices, tokens_axis
from jaxembed.types import Array

IMPLS = ('auto', 'dense', 'blockwise', 'splash', 'cudnn')
# Rows up to this many tokens have their scores formed at once: below it nothing is
# gained from tiles on a CPU, and other devices have room for them.
SHORT, _SHORT_CPU = 128, 64


class Call(NamedTuple):
  """What the choice of an implementation depends on."""

  platform: str  # of dispatch.platform
  length: int  # tokens of a row
  dtype: str
  causal: bool
  window: bool
  mixed: bool  # the window holds in some layers alone
  packed: bool
  prefix: bool
  softcap: bool
  bias: bool
  shards: int = 1  # devices that the tokens of a row are split over
  distant: bool = False  # whether distant keys have scores of their own
  pairs: bool = False  # whether every pair of tokens has a term of its own


def attend(q: Array, k: Array, v: Array, pattern: Pattern, *, scale: float,
           softcap: float = 0.0, bias: Array | None = None,
           pairs: Array | None = None, distant: Distant | None = None,
           impl: str = 'auto') -> jax.Array:
  """softmax(scale q k + bias + pairs) v over the keys that `pattern` lets a query see.

  Args:
    q: [B,T,N,H].
    k, v: [B,T,K,H]; key head j serves the query heads jG..jG+G-1.
    pattern: who sees whom.
    scale: of the products q k.
    softcap: c > 0 replaces a score s by c tanh(s/c) (Gemma 2).
    bias: [N,2T-1], added to scores by distance, key minus query, from 1-T to T-1.
    pairs: [B,N,T,T], added to scores (DeBERTa): all scores are then formed at once.
    distant: queries and keys that score keys far from a query; None: q and k do.
    impl: one of IMPLS; 'auto' is `choose`.

  Softmax and sums are float32. Returns [B,T,N,H]; what stands where a query sees no
  key (padding) is finite and means nothing. Under an Explicit mesh rows are split over
  BATCH, heads over 'tensor', and tokens over 'sequence' where the mesh has it: every
  device then gathers the keys and values of its rows, for its own queries.

  Raises dispatch.Unsupported if a named impl cannot run here.
  """
  call = Call(
      dispatch.platform(), q.shape[1], str(q.dtype), pattern.causal,
      bool(pattern.window), pattern.windowed is not None, pattern.packed,
      pattern.prefix is not None, bool(softcap), bias is not None,
      sequence_devices(), distant is not None, pairs is not None)
  impl = choose(call, impl)
  if distant is not None:
    return _local(
        lambda q, k, v, pattern, distant, first: far.attend(
            q, k, v, pattern, distant, scale=scale, softcap=softcap,
            cpu=call.platform == 'cpu'), q, k, v, pattern, distant=distant)
  if impl == 'dense':
    return reference.attend(q, k, v, pattern, scale=scale, softcap=softcap, bias=bias,
                            pairs=pairs)
  run = {
      'splash': lambda *a, bias, first: tpu.attend(
          *a, scale=scale, softcap=softcap, first=first),
      'cudnn': lambda *a, bias, first: gpu.attend(*a, scale=scale),
      'blockwise': functools.partial(
          cpu.attend if call.platform == 'cpu' else functools.partial(
              blockwise.attend, cpu=False), scale=scale, softcap=softcap),
  }[impl]
  return _local(run, q, k, v, pattern, bias=bias)


def choose(call: Call, asked: str = 'auto') -> str:
  """The implementation that computes a call.

  Raises ValueError on an unknown name, dispatch.Unsupported on one that cannot run.
  """
  if asked not in IMPLS:
    raise ValueError(f'attention_impl {asked!r} is unknown; choose one of {IMPLS}')
  if asked != 'auto':
    if why := _lacks(asked, call):
      raise dispatch.Unsupported(
          f"attention_impl {asked!r} {why}; use 'auto' or 'blockwise'")
    return asked
  short = _SHORT_CPU if call.platform == 'cpu' else SHORT
  if (call.length <= short or call.pairs) and not _lacks('dense', call):
    return 'dense'
  found = next((impl for impl in ('splash', 'cudnn', 'blockwise')
                if not _lacks(impl, call)), '')
  if not found:
    why = _lacks('dense' if call.pairs else 'blockwise', call)
    raise dispatch.Unsupported(f"attention {why}; use a mesh without 'sequence', or "
                               'another length method')
  return found


def _lacks(impl: str, call: Call) -> str:
  """Why an implementation cannot compute a call; '': it can."""
  split = {'needs the tokens of a row on one device': call.shards > 1}
  one = {'has no terms of pairs of tokens': call.pairs}
  apart = {'has no scores of their own for distant keys (self_extend)': call.distant}
  has = {
      'dense': split | apart,
      'blockwise': one | (split | {'with distant keys has no bias of scores': call.bias}
                          if call.distant else {}),
      'splash': one | apart | {
          f'runs on TPUs, and this is a {call.platform}': call.platform != 'tpu',
          'has no prefix': call.prefix,
          'has no bias of scores': call.bias},
      'cudnn': one | split | apart | {
          f'runs on GPUs, and this is a {call.platform}': call.platform != 'gpu',
          f'takes 16 bits, not {call.dtype}': jnp.finfo(call.dtype).bits != 16,
          'has no prefix': call.prefix,
          'has no bias of scores': call.bias,
          'has no soft cap': call.softcap,
          'has windows of causal attention in all layers alone':
              call.window and (call.mixed or not call.causal),
          f'takes packed rows of at most {gpu.LONGEST_PACKED} tokens':
              call.packed and (call.length > gpu.LONGEST_PACKED or call.window)},
  }.get(impl, {})
  return next((why for why, lacking in has.items() if lacking), '')


def _local(run, q, k, v, pattern: Pattern, **more) -> jax.Array:
  """`run` on each device's own rows, queries and heads; `more` is bias or distant."""
  if not explicit():
    return run(q, k, v, pattern, **more, first=0)
  axis = tokens_axis()
  heads, rows = P(BATCH, axis, 'tensor', None), P(BATCH, None)
  pattern_specs = jax.tree.map(lambda x: rows if jnp.ndim(x) else P(), pattern)
  # In place of its arrays.
  more_specs: dict[str, Any] = {'bias': P('tensor', None), 'distant': Distant(
      *cast(Any, (rows, *(heads,) * 4)))}

  def local(q, k, v, pattern, more):
    first = 0
    if axis:
      first = lax.axis_index(axis) * q.shape[1]
      # all-gather over sequence; of the gradients, reduce-scatter
      k, v = (lax.all_gather(x, axis, axis=1, tiled=True) for x in (k, v))
    return run(q, k, v, pattern, **more, first=first)

  return jax.shard_map(
      local, in_specs=(heads, heads, heads, pattern_specs, {
          name: None if x is None else more_specs[name] for name, x in more.items()}),
      out_specs=heads, check_vma=False)(q, k, v, pattern, more)
