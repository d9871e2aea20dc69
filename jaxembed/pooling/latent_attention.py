"""Latent-attention pooling (NV-Embed, arXiv 2405.17428): parameters and forward.

Paths under `pooling/`, a public contract:
  latents [R,D]                    trainable keys and values of one cross-attention
  norm/{scale,bias} [D]            of the token states, before q
  norm_context/{scale,bias} [D]    of the latents, before k and v
  q/kernel, k/kernel, v/kernel [D,N,H]      no biases
  out/kernel [N,H,D]
  mlp_norm/{scale,bias} [D]
  mlp/up/{kernel [D,F], bias [F]}           the half that is gated
  mlp/gate/{kernel [D,F], bias [F]}         the half that goes through GELU
  mlp/down/{kernel [F,D], bias [D]}
H is `head_dim`, or D when that is 0: the released head is 8 heads of 4096.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxembed import config, types
from jaxembed.kernels.latent_pool import (
  Folded,
  fold_latents,
  latent_pool,
  latent_pool_packed,
)
from jaxembed.mesh import BATCH, explicit, reshard, split_tokens, tokens_axis
from jaxembed.pooling import cross_attention
from jaxembed.pooling.head import Head, States, Twin


def init(
    cfg: config.PoolingConfig, dim: int, key: jax.Array, dtype: Any = jnp.float32
) -> types.Params:
  """Parameters of a new head on states of width `dim`.

  `out` and `mlp/down` are zero, so a new head starts exactly as mean pooling;
  the other kernels are uniform in +-1/sqrt(D) and the latents N(0,1), as released.
  """
  heads, inner = cfg.heads, cfg.ff_mult * dim
  width = cfg.head_dim or dim
  keys = jax.random.split(key, 6)
  bound = dim ** -0.5

  def uniform(k, *shape):
    return jax.random.uniform(k, shape, dtype, -bound, bound)

  def norm():
    return {'scale': jnp.ones(dim, dtype), 'bias': jnp.zeros(dim, dtype)}

  def linear(k):
    return {'kernel': uniform(k, dim, inner), 'bias': jnp.zeros(inner, dtype)}

  return {
      'latents': jax.random.normal(keys[0], (cfg.latents, dim), dtype),
      'norm': norm(),
      'norm_context': norm(),
      'q': {'kernel': uniform(keys[1], dim, heads, width)},
      'k': {'kernel': uniform(keys[2], dim, heads, width)},
      'v': {'kernel': uniform(keys[3], dim, heads, width)},
      'out': {'kernel': jnp.zeros((heads, width, dim), dtype)},
      'mlp_norm': norm(),
      'mlp': {
          'up': linear(keys[4]),
          'gate': linear(keys[5]),
          'down': {'kernel': jnp.zeros((inner, dim), dtype),
                   'bias': jnp.zeros(dim, dtype)},
      },
  }


def apply(
    params: types.Params | Folded, cfg: config.PoolingConfig, hidden: types.Array,
    pool: types.Array, *, impl: str = '',
) -> jax.Array:
  """Pooled states, not normalised. hidden [B,T,D], pool [B,T] -> [B,D] float32.

  A row whose `pool` is all false gives the zero vector. Under an Explicit mesh
  rows are split over BATCH, heads and feed-forward channels over 'tensor' as
  sharding.RULES lays them. Errors are those of kernels.latent_pool.latent_pool.

  Args:
    params: tree of `init`, or `fold` of one.
    cfg: static; the parameters' shapes say everything it would but for its `impl`.
    impl: one of kernels.dispatch.IMPLS, in place of cfg.impl.
  """
  impl = impl or cfg.impl
  op = functools.partial(latent_pool, impl=impl)
  return _local(op, params, hidden, pool, whole=impl == 'reference')


def apply_packed(
    params: types.Params | Folded, cfg: config.PoolingConfig, hidden: types.Array,
    segments: types.Array, num_segments: int, *, impl: str = '',
) -> jax.Array:
  """As `apply` when a row holds S = num_segments texts. -> [B,S,D] float32.

  segments [B,T] int32: the text of its row a token counts for; negative: none.
  """
  impl = impl or cfg.impl
  op = functools.partial(
      latent_pool_packed, num_segments=num_segments, impl=impl)
  return _local(op, params, hidden, segments, whole=impl == 'reference')


def fold(params: types.Params, dtype: Any = None) -> Folded:
  """The head with its latents folded in, for states of `dtype`; see fold_latents.

  Under an Explicit mesh every device builds a piece: latents are split over
  'data', width over 'fsdp', heads over 'tensor'.
  """
  mesh = jax.sharding.get_abstract_mesh()
  latents = params['latents']
  if explicit() and latents.shape[0] % mesh.shape['data'] == 0:
    params = {**params, 'latents': reshard(latents, 'data', None)}
  return fold_latents(params, dtype)


_ROWS = P(BATCH)
# What a device holds of the folded head while it computes.
_COLUMNS = {'kernel': P(None, 'tensor'), 'bias': P('tensor')}
_SPECS: dict[str, Any] = dict(
    norm={'scale': P(), 'bias': P()},
    w_in=P(None, 'tensor', None),
    w_out=P('tensor', None, None),
    mlp_norm={'scale': P(), 'bias': P()},
    mlp={'up': _COLUMNS, 'gate': _COLUMNS,
         'down': {'kernel': P('tensor', None), 'bias': P()}})
_FOLDED = Folded(**_SPECS)


def _local(op, params, hidden, marks, whole) -> jax.Array:
  """op(params, hidden, marks) on each device's rows; `whole`: of all parameters."""
  if not explicit():
    return op(params, hidden, marks)
  hidden, marks = split_tokens(hidden), split_tokens(marks)
  if whole:
    specs = P()
  else:
    specs = _FOLDED
    op = functools.partial(op, axis='tensor')
    params = params if isinstance(params, Folded) else fold(params, hidden.dtype)
  axis = tokens_axis()
  # Pallas kernels do not say over which mesh axes their results vary.
  run = jax.shard_map(
      functools.partial(_over_shards, op, axis), check_vma=False,
      in_specs=(specs, P(BATCH, axis), P(BATCH, axis)), out_specs=_ROWS)
  return run(_gather(params, specs), hidden, marks)


def _over_shards(op, axis, params, hidden, marks):
  """op(params, hidden, marks), a mean over tokens that are split over a mesh axis."""
  found = op(params, hidden, marks)
  if axis is None:
    return found
  if marks.dtype == bool:
    count = marks.sum(1, dtype=found.dtype)
  else:
    count = (marks[:, None] == jnp.arange(found.shape[1])[:, None]).sum(
        2, dtype=found.dtype)
  total, number = jax.lax.psum((found * count[..., None], count), axis)
  return total / jnp.maximum(number, 1)[..., None]


def _gather(params, specs):
  """All-gathers what `specs` does not split: M and U, and the feed-forward."""
  if isinstance(specs, P):
    return jax.tree.map(lambda x: jax.sharding.reshard(x, specs), params)
  return jax.tree.map(jax.sharding.reshard, params, specs)


def _pool(params: types.Params, cfg: config.PoolingConfig, states: States):
  return apply_packed(params, cfg, states.hidden, states.segment, states.slots)


HEAD = Head(
    kind='latent_attention', apply=_pool,
    words='latent attention over its tokens, then their mean', splits=True,
    init=lambda cfg, dim, layers, key: init(cfg, dim, key),
    fields=cross_attention.FIELDS, rules=cross_attention.RULES,
    tensors=lambda cfg: cross_attention.TENSORS,
    twin=Twin('torch_latent_attention.py', 'latent_attention_pooling',
              'LatentAttentionPooling', cross_attention.KEYS))
