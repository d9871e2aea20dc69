"""Norms and activations, shared by the models, the poolings and the kernels."""

import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed.mesh import along_last
from jaxembed.types import Array


def layer_norm(x: Array, scale: Array, bias: Array | None = None,
               eps: float | jax.Array = 1e-5) -> jax.Array:
  """LayerNorm over the last axis (Ba et al. 2016).  [...,D] -> [...,D].

  Computed in float32 (float64 for float64), returned in the dtype of x.
  """
  wide = x.astype(accumulator(x.dtype))
  return _normed(wide - wide.mean(-1, keepdims=True), scale, bias, eps, x.dtype)


def rms_norm(x: Array, scale: Array, bias: Array | None = None,
             eps: float | jax.Array = 1e-5) -> jax.Array:
  """RMSNorm over the last axis (Zhang and Sennrich 2019), computed as `layer_norm`."""
  return _normed(x.astype(accumulator(x.dtype)), scale, bias, eps, x.dtype)


def _normed(x: Any, scale: Any, bias: Any, eps: Any, dtype) -> jax.Array:
  x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
  x = x * along_last(scale.astype(x.dtype), x)
  if bias is not None:
    x = x + along_last(bias.astype(x.dtype), x)
  return x.astype(dtype)


def accumulator(dtype: Any) -> jnp.dtype:
  """The dtype of sums, softmaxes and norms over arrays of `dtype`."""
  return jnp.promote_types(dtype, jnp.float32)


def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x) through erf, as torch has it: half the work of jax.nn's erfc."""
  return x * _phi(x)


def gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """x Phi(x) and its derivative Phi(x) + x phi(x)."""
  density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
  phi = _phi(x)
  return x * phi, phi + x * density


def _phi(x):
  """Distribution function of the standard normal."""
  return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))


def geglu(up: jax.Array, gate: jax.Array) -> jax.Array:
  """up * gelu(gate) (Shazeer 2020, arXiv 2002.05202)."""
  return up * gelu(gate)


ACTIVATIONS = {
    'silu': jax.nn.silu,
    'relu': jax.nn.relu,
    'gelu': gelu,
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'tanh': jnp.tanh,
    'identity': lambda x: x,
}
