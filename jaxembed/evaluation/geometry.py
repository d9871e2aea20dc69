"""Embedding geometry: alignment, uniformity and effective rank (signs of collapse)."""

import numpy as np

from jaxembed import types


def alignment(a: types.Array, b: types.Array) -> float:
  """Mean squared distance of matching unit rows; 0 is best.  a, b [n,d].

  Wang & Isola 2020, eq. 1 with alpha 2.
  """
  return float(np.square(np.asarray(a) - np.asarray(b)).sum(-1).mean())


def uniformity(x: types.Array) -> float:
  """log of the mean of exp(-2 |x_i - x_j|^2) over pairs; lower is more even.

  x [n,d], unit rows, n >= 2. Wang & Isola 2020, eq. 2 with t 2.
  """
  x = np.asarray(x, np.float64)
  near = np.exp(4 * (np.clip(x @ x.T, -1, 1) - 1))  # |a-b|^2 = 2 - 2<a,b>
  n = len(x)
  return float(np.log((near.sum() - np.trace(near)) / (n * (n - 1))))


def effective_rank(x: types.Array) -> float:
  """Dimensions in use: exp of the entropy of the normalised singular values.

  x [n,d] -> 1 (all rows on one line) to min(n, d). Roy & Vetterli 2007.
  """
  values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
  share = values / values.sum()
  share = share[share > 0]
  return float(np.exp(-(share * np.log(share)).sum()))
