"""Precision of float32 matrix products, which is float32 on every platform.

Unless told otherwise a TPU multiplies float32 matrices in one bfloat16 pass and an
NVIDIA GPU in TF32. A float32 model asks for `ModelConfig.precision` instead, by
default 'highest'. Operands of 16 bits are exact in one pass and are left alone.
"""

import contextlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed.config import ModelConfig


def scope(cfg: ModelConfig) -> contextlib.AbstractContextManager:
  """The context in which programs of `cfg` are traced.

  Gradients taken inside or outside of it have the same precision, except those of
  functions with a gradient rule of their own, which call `einsum`.
  """
  if cfg.dtype != 'float32':
    return contextlib.nullcontext()
  return jax.default_matmul_precision(cfg.precision)


def of_dtype(dtype: Any) -> lax.Precision:
  """Precision that makes a product of operands of `dtype` exact: HIGHEST from
  float32 on, DEFAULT below."""
  wide = jnp.finfo(dtype).bits >= 32
  return lax.Precision.HIGHEST if wide else lax.Precision.DEFAULT


def einsum(subscripts: str, a: jax.Array, b: jax.Array, **options) -> jax.Array:
  """jnp.einsum with the precision of the narrower operand's dtype."""
  narrow = min(a.dtype, b.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
  return jnp.einsum(subscripts, a, b, precision=of_dtype(narrow), **options)
