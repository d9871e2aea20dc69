"""The one door to attention: which implementation runs where."""

import functools

import jax
from jax.sharding import PartitionSpec as P

from jaxembed.kernels import dispatch
from jaxembed.kernels.attention import blockwise, reference
from jaxembed.kernels.attention.pattern import Pattern
from jaxembed.mesh import BATCH, explicit
from jaxembed.types import Array

IMPLS = ('auto', 'dense', 'blockwise')
# Rows up to this many tokens have their scores formed at once: below it a CPU gains
# nothing from tiles, and other devices have room for them.
_SHORT = {'cpu': 128}
_SHORT_ELSEWHERE = 128


def attend(q: Array, k: Array, v: Array, pattern: Pattern, *, scale: float,
           softcap: float = 0.0, bias: Array | None = None, impl: str = 'auto'
           ) -> jax.Array:
  """softmax(scale q k + bias) v over the keys that `pattern` lets a query see.

  Args:
    q: [B,T,N,H].
    k, v: [B,T,K,H]; key head j serves the query heads jG..jG+G-1.
    pattern: who sees whom.
    scale: of the products q k.
    softcap: c > 0 replaces a score s by c tanh(s/c) (Gemma 2).
    bias: [N,2T-1], added to scores by distance, key minus query, from 1-T to T-1.
    impl: one of IMPLS; 'auto' is `choose`.

  Softmax and sums are float32. Returns [B,T,N,H]; what stands where a query sees no
  key (padding) is finite and means nothing. Under an Explicit mesh rows are split over
  BATCH and heads over 'tensor'.

  Raises dispatch.Unsupported if a named impl cannot run here.
  """
  if impl not in IMPLS:
    raise ValueError(f'attention impl {impl!r} is unknown; choose one of {IMPLS}')
  impl = choose(q.shape[1]) if impl == 'auto' else impl
  options = {'scale': scale, 'softcap': softcap}
  if impl == 'dense':
    return reference.attend(q, k, v, pattern, bias=bias, **options)
  run = functools.partial(blockwise.attend, cpu=dispatch.platform() == 'cpu', **options)
  return _local(run, q, k, v, pattern, bias)


def choose(length: int) -> str:
  """What 'auto' is for rows of `length` tokens on the platform in force."""
  short = _SHORT.get(dispatch.platform(), _SHORT_ELSEWHERE)
  return 'dense' if length <= short else 'blockwise'


def _local(run, q, k, v, pattern: Pattern, bias) -> jax.Array:
  """`run` on each device's own rows and heads."""
  if not explicit():
    return run(q, k, v, pattern, bias=bias)
  heads, rows = P(BATCH, None, 'tensor', None), P(BATCH, None)
  pattern_specs = Pattern(
      rows, pattern.causal, pattern.window,
      None if pattern.prefix is None else rows,
      None if pattern.windowed is None else P())
  return jax.shard_map(
      lambda q, k, v, pattern, bias: run(q, k, v, pattern, bias=bias),
      in_specs=(heads, heads, heads, pattern_specs,
                None if bias is None else P('tensor', None)),
      out_specs=heads, check_vma=False)(q, k, v, pattern, bias)
