"""Spherical interpolation of task vectors, by their inner products alone.

Whatever is folded, the result is a weighted sum of the vectors, and its weights
follow from the Gram matrix. So a model is read once for its products and once for
the sum, and the weights are differentiable in the shares (Self Positioning).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxembed.types import Array

# Radians below which two directions count as one: sin is too small to divide by, and
# a chord is as good as an arc.
SMALLEST_ANGLE = 1e-3


def coefficients(gram: Array, shares: Sequence[float] | Array, xp: Any = np) -> Any:
  """Weights [n] of `u_n`, where u_1 = v_1 and u_k = slerp(u_{k-1}, v_k; shares[k-2]).

  slerp(a, b; t) = sin((1-t)O)/sin O a + sin(tO)/sin O b, O the angle between a and b
  (Shoemake 1985); (1-t) a + t b where O is next to 0 or pi, or a vector is zero.

  Args:
    gram: [n,n] inner products of the vectors, float.
    shares: [n-1], t of each fold, 0 to 1.
    xp: numpy, or jax.numpy to differentiate in `shares`.
  """
  count = len(gram)
  rows = xp.eye(count, dtype=gram.dtype)
  found = rows[0]
  for k in range(1, count):
    share, norms = shares[k - 1], (found @ gram @ found) * gram[k, k]
    cosine = (found @ gram[:, k]) / xp.sqrt(xp.where(norms > 0, norms, 1))
    near = (norms <= 0) | (abs(cosine) > np.cos(SMALLEST_ANGLE))
    # Where it is not used the angle is a right one, so that gradients stay finite.
    angle = xp.arccos(xp.where(near, 0, cosine))
    first = xp.where(near, 1 - share, xp.sin((1 - share) * angle) / xp.sin(angle))
    second = xp.where(near, share, xp.sin(share * angle) / xp.sin(angle))
    found = first * found + second * rows[k]
  return found


def shares(weights: Sequence[float]) -> list[float]:
  """Shares of the folds that give the models these weights."""
  total, found = weights[0], []
  for weight in weights[1:]:
    total += weight
    found.append(weight / total if total else 0.0)
  return found


def gram(vectors: Sequence[np.ndarray]) -> np.ndarray:
  """Inner products [n,n] of float64 arrays of one shape."""
  flat = [np.reshape(v, -1) for v in vectors]
  return np.array([[a @ b for b in flat] for a in flat])
