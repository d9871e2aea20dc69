"""Rotary positions (Su et al. 2021, arXiv 2104.09864), rotate-half layout."""

import math

from jax import Array
import jax.numpy as jnp
import numpy as np

from jaxembed.config import BackboneConfig, RopeScaling


def table(cfg: BackboneConfig, positions: Array, theta: float,
          scaling: RopeScaling | None) -> tuple[Array, Array]:
  """cos and sin [B,T,1,H/2] float32 at `positions` [B,T]."""
  freqs = jnp.asarray(frequencies(cfg.rope_dim or cfg.head_dim, theta, scaling))
  if scaling and scaling.kind == 'longrope':
    freqs = _by_length(freqs, positions, scaling)
  angles = positions[:, :, None, None].astype(jnp.float32) * freqs
  factor = scaling.attention_factor if scaling else 1.0
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array) -> Array:
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


def frequencies(width: int, theta: float,
                scaling: RopeScaling | None = None) -> np.ndarray:
  """Angle per position of each channel pair.  -> [width/2] float32."""
  exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  freqs = 1.0 / np.float32(theta) ** exponents
  if scaling is None:
    return freqs
  return _SCALERS[scaling.kind](freqs, theta, scaling).astype(np.float32)


def _linear(freqs, theta, s: RopeScaling):
  return freqs / s.factor


def _llama3(freqs, theta, s: RopeScaling):
  """Long wavelengths are stretched, short ones kept, a ramp joins them."""
  rotations = s.original_positions * freqs / (2 * math.pi)
  ramp = ((rotations - s.low_freq_factor)
          / (s.high_freq_factor - s.low_freq_factor)).clip(0, 1)
  return freqs * ((1 - ramp) / s.factor + ramp)


def _longrope(freqs, theta, s: RopeScaling):
  """Undivided: the divisor depends on the text's length, see `_by_length`."""
  return freqs


def _by_length(freqs: Array, positions: Array, s: RopeScaling) -> Array:
  """freqs [H/2], positions [B,T] -> [B,1,1,H/2].

  Ding et al. 2024 (LongRoPE, arXiv 2402.13753). Each row chooses by its own
  length; transformers lets the longest row of a batch choose for all.
  """
  is_long = positions.max(axis=1)[:, None, None, None] + 1 > s.original_positions
  return jnp.where(is_long, freqs / np.asarray(s.long_factors, np.float32),
                   freqs / np.asarray(s.short_factors, np.float32))


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


_SCALERS = {'linear': _linear, 'llama3': _llama3, 'longrope': _longrope,
            'yarn': _yarn}
