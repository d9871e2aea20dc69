"""Reference implementation of the latent-attention head, as published.

Token states are the queries; R trainable latents are the keys and values of one
multi-head cross-attention; a GEGLU feed-forward follows; both have residuals.
The kept tokens are then averaged (NV-Embed, arXiv 2405.17428, section 3.1).
Every other implementation is tested against this one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxembed.functional import accumulator, geglu, layer_norm
from jaxembed.precision import einsum
from jaxembed.types import Params


def latent_pool(params: Params, hidden: jax.Array, pool: jax.Array) -> jax.Array:
  """Mean of the head's outputs over kept tokens.

  hidden [B,T,D], pool [B,T] bool -> [B,D] float32 (float64 for float64 states).
  A row that keeps no token gives the zero vector, and a token that is not kept
  has no influence, be it NaN.
  """
  hidden = jnp.where(pool[..., None], hidden, 0)
  out = tokens(params, hidden).astype(accumulator(hidden.dtype))
  total = jnp.sum(jnp.where(pool[..., None], out, 0), axis=1)
  return total / jnp.maximum(jnp.sum(pool, axis=1), 1)[:, None]


def latent_pool_packed(params: Params, hidden: jax.Array, segments: jax.Array,
                       num_segments: int) -> jax.Array:
  """One mean per text when a row holds several.

  hidden [B,T,D], segments [B,T] int32 (negative: not kept) -> [B,S,D] float32.
  """
  return jnp.stack(
      [latent_pool(params, hidden, segments == s) for s in range(num_segments)], 1)


def tokens(params: Params, hidden: jax.Array) -> jax.Array:
  """The head's output for every token, before pooling. [..., D] -> [..., D]."""
  hidden = hidden + _attend(params, hidden)
  return hidden + _feed_forward(params, hidden)


def project_latents(params: Params, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """Keys and values: they depend on parameters alone. -> two [R,N,H]."""
  context = layer_norm(params['latents'].astype(dtype), **params['norm_context'])
  key = einsum('RD,DNH->RNH', context, params['k']['kernel'].astype(dtype))
  value = einsum('RD,DNH->RNH', context, params['v']['kernel'].astype(dtype))
  return key, value


def _attend(params, x):
  """Cross-attention of tokens to latents. [..., D] -> [..., D]."""
  dtype = x.dtype
  acc = accumulator(dtype)
  query = einsum(
      '...D,DNH->...NH', layer_norm(x, **params['norm']),
      params['q']['kernel'].astype(dtype))
  key, value = project_latents(params, dtype)
  logits = einsum(
      '...NH,RNH->...NR', query, key, preferred_element_type=acc)
  # A latent is never masked: all R take part for every token.
  weights = jax.nn.softmax(logits * key.shape[-1] ** -0.5, axis=-1).astype(dtype)
  mixed = einsum('...NR,RNH->...NH', weights, value)
  return einsum('...NH,NHD->...D', mixed, params['out']['kernel'].astype(dtype))


def _feed_forward(params, x):
  """GEGLU feed-forward. [..., D] -> [..., D]."""
  dtype = x.dtype
  acc = accumulator(dtype)
  mlp = params['mlp']
  normed = layer_norm(x, **params['mlp_norm'])

  def project(name):
    y = einsum('...D,DF->...F', normed, mlp[name]['kernel'].astype(dtype),
               preferred_element_type=acc)
    return y + mlp[name]['bias'].astype(acc)

  inner = geglu(project('up'), project('gate')).astype(dtype)
  y = einsum('...F,FD->...D', inner, mlp['down']['kernel'].astype(dtype),
             preferred_element_type=acc)
  return (y + mlp['down']['bias'].astype(acc)).astype(dtype)
