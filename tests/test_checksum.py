"""Sums over bits: of any dtype, on any mesh, by numpy or by XLA, the same."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from jaxembed import checksum, sharding

_RNG = np.random.default_rng(0)
_ARRAYS = {
    'float32': _RNG.normal(size=(64, 24)).astype(np.float32),
    'float16': _RNG.normal(size=(16,)).astype(np.float16),
    'bfloat16': _RNG.normal(size=(8, 3)).astype(jnp.bfloat16),
    'int32': _RNG.integers(-9, 9, size=(16, 2), dtype=np.int32),
    'uint8': _RNG.integers(0, 255, size=(8,), dtype=np.uint8),
    'bool': _RNG.integers(0, 2, size=(8, 5)).astype(bool),
    'scalar': np.float32(-1.5),
    'empty': np.zeros((0, 4), np.float32),
    'blocks': _RNG.normal(size=(2**18 + 8,)).astype(np.float32),  # of more than one
}


def _words(x: np.ndarray) -> int:
  """The sum of an array's words, in Python's own numbers."""
  raw, width = np.ascontiguousarray(x).tobytes(), x.dtype.itemsize
  return sum(int.from_bytes(raw[i:i + width], 'little')
             for i in range(0, len(raw), width)) % 2**32


def test_every_dtype_and_sharding_has_the_sum_of_its_words():
  mesh = sharding.make_mesh((4, 2, 1))
  want = 0
  for name in sorted(_ARRAYS):
    want = (want * 31 + _words(np.asarray(_ARRAYS[name]))) % 2**32
  for spec in (P(), P('data'), P(('data', 'fsdp'))):
    with jax.set_mesh(mesh):
      spread = {k: jax.device_put(x, NamedSharding(
          mesh, spec if x.ndim and x.shape[0] else P())) for k, x in _ARRAYS.items()}
    assert checksum.of_tree(spread) == want
  assert checksum.of_tree(_ARRAYS) == want  # which XLA did not see
  added = jax.device_get(checksum._added([jnp.asarray(x) for x in _ARRAYS.values()]))
  assert [int(x) for x, _ in added] == [
      _words(np.asarray(x)) for x in _ARRAYS.values()]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_is_seen(dtype, value):
  good = {'a': jnp.ones((5, 7), dtype), 'b': jnp.arange(3)}
  assert checksum.of_parts({'x': good, 'y': good})[1]
  bad = good | {'a': good['a'].at[4, 6].set(value)}
  assert not checksum.of_parts({'x': good, 'y': bad})[1]


def test_a_state_that_was_looked_at_is_still_donated():
  """A view that lived on would have its buffer copied by the next step."""
  x = jnp.arange(4096, dtype=jnp.float32)
  where = x.unsafe_buffer_pointer()
  checksum.of_tree([x])
  y = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
  assert x.is_deleted() and y.unsafe_buffer_pointer() == where
