"""Rotary positions (Su et al. 2021, arXiv 2104.09864), rotate-half layout."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxembed.config import RopeScaling
from jaxembed.types import Array


def table(freqs: Array, positions: Array, factor: float = 1.0
          ) -> tuple[jax.Array, jax.Array]:
  """cos and sin, times `factor`: [B,T,1,H/2] float32 at `positions` [B,T].

  freqs: angle per position of each channel pair, [H/2] or [B,T,H/2].
  """
  angles = positions[:, :, None, None].astype(jnp.float32) * (
      freqs if freqs.ndim == 1 else freqs[:, :, None])
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array) -> jax.Array:
  """Rotates channels i and i + H/2 as a pair.  x [B,T,N,H] -> [B,T,N,H].

  Channels beyond the table's width pass through.
  """
  half = cos.shape[-1]
  a, b = x[..., :half], x[..., half:2 * half]
  cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
  parts = [a * cos - b * sin, b * cos + a * sin]
  if x.shape[-1] > 2 * half:
    parts.append(x[..., 2 * half:])
  return jnp.concatenate(parts, axis=-1)


def by_length(scaling: RopeScaling | None) -> bool:
  """Whether frequencies depend on the length of a text."""
  return scaling is not None and scaling.kind in ('dynamic', 'longrope')


def frequencies(width: int, theta: float, scaling: RopeScaling | None = None,
                count: Array | None = None) -> Array:
  """Angle per position of each channel pair.  -> [width/2] float32.

  count: tokens of a text, [B,T] or a number, where they are `by_length`: then
    [B,T,width/2]. Each text decides for itself; transformers lets the longest of a
    batch decide for all.
  """
  exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  freqs = 1.0 / np.float32(theta) ** exponents
  if scaling is None:
    return freqs
  if not by_length(scaling):
    return _SCALERS[scaling.kind](freqs, theta, scaling).astype(np.float32)
  assert count is not None
  return _BY_LENGTH[scaling.kind](freqs, theta, scaling, jnp.asarray(count)[..., None])


def _linear(freqs, theta, s: RopeScaling):
  return freqs / s.factor


def _llama3(freqs, theta, s: RopeScaling):
  """Long wavelengths are stretched, short ones kept, a ramp joins them."""
  rotations = s.original_positions * freqs / (2 * math.pi)
  ramp = ((rotations - s.low_freq_factor)
          / (s.high_freq_factor - s.low_freq_factor)).clip(0, 1)
  return freqs * ((1 - ramp) / s.factor + ramp)


def _yarn(freqs, theta, s: RopeScaling):
  """Peng et al. 2023, arXiv 2309.00071, section 3.2."""
  width = 2 * len(freqs)

  def channel(rotations):  # the pair with so many over the original length
    return (width * math.log(s.original_positions / (rotations * 2 * math.pi))
            / (2 * math.log(theta)))

  low = max(math.floor(channel(s.beta_fast)), 0)
  high = min(math.ceil(channel(s.beta_slow)), width - 1)
  ramp = ((np.arange(len(freqs)) - low) / max(high - low, 1e-3)).clip(0, 1)
  return freqs / s.factor * ramp + freqs * (1 - ramp)


def _longrope(freqs, theta, s: RopeScaling, count):
  """Ding et al. 2024 (LongRoPE, arXiv 2402.13753)."""
  return jnp.where(count > s.original_positions,
                   freqs / np.asarray(s.long_factors, np.float32),
                   freqs / np.asarray(s.short_factors, np.float32))


def _dynamic(freqs, theta, s: RopeScaling, count):
  """The base grows with the length of the text (dynamic NTK)."""
  width: Any = 2 * freqs.shape[-1]
  exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  stretch = jnp.maximum(s.factor * count / s.original_positions - (s.factor - 1), 1)
  return freqs * jnp.exp(-jnp.log(stretch) * (width / (width - 2)) * exponents)


_SCALERS = {'linear': _linear, 'llama3': _llama3, 'yarn': _yarn}
_BY_LENGTH = {'dynamic': _dynamic, 'longrope': _longrope}
