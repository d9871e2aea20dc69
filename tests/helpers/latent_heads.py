"""Small latent-attention heads, states for them, and how far results lie apart."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
  """The head's widths; by default a head dim that is not D / heads."""

  dim: int = 16
  heads: int = 3
  width: int = 10
  latents: int = 7
  inner: int = 24


LANES = Shape(dim=128, heads=2, width=16, latents=24, inner=384)


def make_params(shape=Shape(), dtype=np.float32, seed=0):
  """Random parameters, none of them zero or one."""
  rng = np.random.default_rng(seed)

  def kernel(*dims, fan_in):
    return jnp.asarray(rng.normal(size=dims) / math.sqrt(fan_in), dtype)

  def vector(size, centre=0.0):
    return jnp.asarray(centre + 0.3 * rng.normal(size=size), dtype)

  d, n, h, f = shape.dim, shape.heads, shape.width, shape.inner

  def norm():
    return {'scale': vector(d, 1.0), 'bias': vector(d)}

  def linear(rows, columns):
    return {'kernel': kernel(rows, columns, fan_in=rows), 'bias': vector(columns)}

  return {
      'latents': kernel(shape.latents, d, fan_in=1),
      'norm': norm(),
      'norm_context': norm(),
      **{name: {'kernel': kernel(d, n, h, fan_in=d / 4)} for name in ('q', 'k', 'v')},
      'out': {'kernel': kernel(n, h, d, fan_in=n * h)},
      'mlp_norm': norm(),
      'mlp': {'up': linear(d, f), 'gate': linear(d, f), 'down': linear(f, d)},
  }


def make_states(rows, length, dim, segments=1, dtype=np.float32, seed=1):
  """Token states, whose texts they are (-1: none), a cotangent."""
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(rows, length, dim)), dtype)
  marks = jnp.asarray(np.sort(rng.integers(-1, segments, (rows, length)), axis=1))
  cotangent = jnp.asarray(rng.normal(size=(rows, segments, dim)))
  return hidden, marks, cotangent


def value_and_grads(op, params, hidden, cotangent):
  """Outputs and gradients in parameters and states, of <op, cotangent>."""
  def loss(params, hidden):
    out = op(params, hidden)
    return jnp.sum(out * cotangent), out

  (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
      params, hidden)
  return out, grads


def distance(got, want):
  """Largest relative Frobenius distance over the leaves (absolute from zeros)."""
  def leaf(x, y):
    x, y = np.float64(x), np.float64(y)
    assert np.isfinite(x).all()
    return np.linalg.norm(x - y) / (np.linalg.norm(y) or 1.0)

  return max(jax.tree.leaves(jax.tree.map(leaf, got, want)))
