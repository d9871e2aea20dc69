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

import jax
import jax.numpy as jnp

from jaxembed import config, types
from jaxembed.kernels.latent_pool import reference


def init(
    cfg: config.PoolingConfig, dim: int, key: jax.Array, dtype=jnp.float32
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
    params: types.Params, cfg: config.PoolingConfig, hidden: types.Array,
    pool: types.Array, *, impl: str = 'auto',
) -> types.Array:
  """Pooled states, not normalised. hidden [B,T,D], pool [B,T] -> [B,D] float32.

  A row whose `pool` is all false gives the zero vector.
  """
  del cfg, impl
  return reference.latent_pool(params, hidden, pool)


def tokens(
    params: types.Params, cfg: config.PoolingConfig, hidden: types.Array
) -> types.Array:
  """The head's output for every token, un-pooled. [B,T,D] -> [B,T,D]."""
  del cfg
  return reference.tokens(params, hidden)
