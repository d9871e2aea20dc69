"""A dropout mask is as random as it should be, and the same on every mesh."""

import jax
import numpy as np
import pytest

from jaxembed import sharding
from jaxembed.models import layers

SHAPE = (8, 64, 96)
RATE = 0.1


def _mask(seed, shape=SHAPE, rate=RATE):
  x = np.ones(shape, np.float32)
  out = np.asarray(jax.jit(layers._dropout, static_argnums=1)(
      x, rate, jax.random.key(seed)))
  assert set(np.unique(out)) <= {np.float32(0), np.float32(1 / (1 - rate))}
  return out > 0


def _within(share, rate, count):
  """Five standard deviations of a mean of `count` draws."""
  assert abs(share - rate) <= 5 * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize('rate', [0.05, 0.1, 0.5])
def test_the_share_is_the_rate_everywhere(rate):
  dropped = ~_mask(0, rate=rate)
  _within(dropped.mean(), rate, dropped.size)
  for axis in range(3):  # no row, position or channel is favoured
    other = tuple(i for i in range(3) if i != axis)
    for share in dropped.mean(other):
      _within(share, rate, dropped.size / SHAPE[axis])


def test_masks_are_independent():
  one, two = ~_mask(0), ~_mask(1)
  pairs = [(one, two), (one[:-1], one[1:]), (one[:, :-1], one[:, 1:]),
           (one[..., :-1], one[..., 1:]), (one[:4], one[4:])]
  for a, b in pairs:
    _within((a & b).mean(), RATE**2, a.size)


def test_every_mesh_draws_the_same():
  want = _mask(3)
  for shape in ((8, 1, 1), (2, 2, 2)):
    mesh = sharding.make_mesh(shape)
    with jax.set_mesh(mesh):
      x = jax.device_put(np.ones(SHAPE, np.float32),
                         jax.NamedSharding(mesh, jax.P(sharding.BATCH, None, None)))
      got = jax.jit(layers._dropout, static_argnums=1)(x, RATE, jax.random.key(3))
    np.testing.assert_array_equal(np.asarray(got) > 0, want)
