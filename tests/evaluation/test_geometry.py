"""Health measures on clouds whose shape is known."""

import numpy as np
import pytest

from jaxembed.evaluation import geometry


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_alignment_is_the_mean_squared_distance():
  a = _unit(np.random.default_rng(0).normal(size=(20, 8)))
  assert geometry.alignment(a, a) == 0
  assert geometry.alignment(a, -a) == pytest.approx(4)


def test_uniformity_equals_a_loop_and_is_zero_when_collapsed():
  x = _unit(np.random.default_rng(0).normal(size=(12, 5)))
  loop = [np.exp(-2 * np.sum((x[i] - x[j]) ** 2))
          for i in range(12) for j in range(12) if i != j]
  assert geometry.uniformity(x) == pytest.approx(np.log(np.mean(loop)), rel=1e-12)
  assert geometry.uniformity(np.repeat(x[:1], 6, 0)) == pytest.approx(0, abs=1e-12)


def test_effective_rank_counts_equal_directions():
  assert geometry.effective_rank(np.eye(7)) == pytest.approx(7)
  one_line = np.outer(np.arange(1, 9), np.ones(4))
  assert geometry.effective_rank(one_line) == pytest.approx(1)
