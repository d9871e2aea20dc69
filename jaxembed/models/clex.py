"""CLEX: rotary frequencies by a learned differential equation in the scale.

Chen et al. 2023 (arXiv 2310.16450). The state z(t) is the logarithm of the inverse
frequencies at scale t, and z(1) is the model's own. With e = 0, 2, 4, .. and
f(t) = (theta (2t-1)^(H/(H-2)))^(-e/H),

  dz/dt = tanh((z + ln f(t)) U) V + f'(t)/f(t).

V = 0, as it starts, makes z(t) = ln f(t): a rotary base of theta (2t-1)^(H/(H-2)).
Parameters `length/{up [H/2,H], down [H,H/2]}` are shared by the layers.
"""

from typing import NamedTuple

import jax
from jax import Array, lax
import jax.numpy as jnp
import numpy as np

from jaxembed import types
from jaxembed.models import rope
from jaxembed.types import Params

_STEPS = 100  # of the Runge-Kutta method, per unit of the scale


class Drawn(NamedTuple):
  """What training draws for rows of text."""

  scale: Array  # [B,1] int32
  ids: Array  # [B,T] int32, places of the tokens in texts so many times longer


def init(key: Array, width: int) -> Params:
  """U uniform in +-1/sqrt(H), V zero; `width` is H, the rotated channels of a head."""
  bound = width**-0.5
  return {'up': jax.random.uniform(key, (width // 2, width), minval=-bound,
                                   maxval=bound),
          'down': jnp.zeros((width, width // 2))}


def frequencies(params: Params, width: int, theta: float, scales: int) -> Array:
  """Inverse frequencies at the scales 1, 2, .. `scales`.  [scales,H/2] float32."""
  e = np.arange(0, width, 2, dtype=np.float32)
  up, down = (params[name].astype(jnp.float32) for name in ('up', 'down'))

  def log_f(t):
    return -(jnp.log(theta) + width / (width - 2) * jnp.log(2 * t - 1)) * e / width

  def slope(t, z):
    return jnp.tanh((z + log_f(t)) @ up) @ down - 2 * e / (width - 2) / (2 * t - 1)

  def step(z, i, start):
    h = jnp.float32(1 / _STEPS)
    t = start + i * h
    k1 = slope(t, z)
    k2 = slope(t + h / 2, z + h / 2 * k1)
    k3 = slope(t + h / 2, z + h / 2 * k2)
    k4 = slope(t + h, z + h * k3)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

  @jax.checkpoint
  def unit(z, start):
    z = lax.fori_loop(0, _STEPS, lambda i, z: step(z, jnp.float32(i), start), z)
    return z, z

  first = rope.frequencies(width, theta)
  _, later = lax.scan(unit, jnp.log(first), jnp.arange(1, scales, dtype=jnp.float32))
  return jnp.concatenate([first[None], jnp.exp(later)])


def draw(key: Array, index: types.Array, count: types.Array, scales: int) -> Drawn:
  """A scale for every row, and its tokens among the places of a longer text.

  index, count [B,T]: the tokens' places, and how many the row's text has. The first
  and the last place of the longer text are kept, those between a sorted sample.
  """
  rows, width = index.shape
  first, second = jax.random.split(key)
  scale = jax.random.randint(first, (rows, 1), 1, scales + 1)
  n = count[:, :1]
  place = jnp.arange(width * scales, dtype=jnp.int32)[None]
  order = jax.random.uniform(second, (rows, width * scales))
  order = jnp.where((place > 0) & (place < n * scale - 1), order, 2.0)
  rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
  taken = jnp.sort(jnp.where(rank < n - 2, place, width * scales), axis=1)
  inner = jnp.pad(taken[:, :width - 1], ((0, 0), (1, 0)))
  ids = jnp.where(index >= n - 1, n * scale - 1, inner)
  return Drawn(scale, jnp.where(index == 0, 0, ids))
