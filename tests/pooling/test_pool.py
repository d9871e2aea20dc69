"""Poolers against loops, under both padding sides."""

import jax
import numpy as np
import pytest

from jaxembed.config import PoolingConfig
from jaxembed.pooling import heads, pool
from jaxembed.pooling.head import States


def _case(side):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 7, 5)).astype(np.float32)
  counts = [7, 3, 1, 0]
  place = np.arange(7)
  mask = np.stack([place < c if side == 'right' else place >= 7 - c for c in counts])
  x[~mask] = np.nan if side == 'left' else 1e30  # padding must not leak
  return np.where(np.isnan(x), 0, x) if side == 'left' else x, mask


_LOOPS = {
    'mean': lambda rows: rows.mean(0),
    'cls': lambda rows: rows[0],
    'last': lambda rows: rows[-1],
    'max': lambda rows: rows.max(0),
    'mean_sqrt': lambda rows: rows.sum(0) / np.sqrt(len(rows)),
    'weighted_mean': lambda rows: np.average(
        rows, axis=0, weights=np.arange(1, len(rows) + 1)),
}


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('kind', sorted(pool.POOLERS))
def test_matches_a_loop(kind, side):
  x, mask = _case(side)
  got = np.asarray(jax.jit(pool.POOLERS[kind])(x, mask))
  want = np.stack([_LOOPS[kind](x[i][mask[i]].astype(np.float64))
                   if mask[i].any() else np.zeros(5) for i in range(4)])
  # float32 sums of at most seven numbers of size 1.
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert got.dtype == np.float32


@pytest.mark.parametrize('kind', sorted(pool.POOLERS))
def test_instruction_tokens_do_not_count(kind):
  x, mask = _case('right')
  some = mask.copy()
  some[0, :4] = False
  got = np.asarray(pool.POOLERS[kind](x, some))
  alone = np.asarray(pool.POOLERS[kind](x[:1, 4:], some[:1, 4:]))
  np.testing.assert_allclose(got[0], alone[0], rtol=1e-6)


def test_weights_count_from_the_first_token_of_the_text():
  """Leaving a prompt out does not renumber what follows it (sentence-transformers)."""
  x, mask = _case('left')
  some = mask.copy()
  some[0, :4] = False
  number = [np.where(m, 0, -1) for m in (some, mask)]
  got = np.asarray(heads.apply(None, PoolingConfig(kind='weighted_mean+cls'), States(
      hidden=x, segment=number[0], text=number[1], slots=1)))[:, 0]
  want = np.average(x[0, 4:].astype(np.float64), axis=0, weights=[5, 6, 7])
  np.testing.assert_allclose(got[0], np.concatenate([want, x[0, 4]]), atol=1e-6)


@pytest.mark.parametrize('kind', sorted(pool.POOLERS))
def test_gradients_are_finite_and_stay_on_counting_tokens(kind):
  x, mask = _case('right')
  grad = np.asarray(jax.grad(lambda x: pool.POOLERS[kind](x, mask).sum())(x))
  assert np.isfinite(grad).all()
  assert (grad[~mask] == 0).all()
