"""Log-sum-exp over the elements of a group that rank below another."""

import jax
from jax import lax
import jax.numpy as jnp

# Where a log-sum-exp of nothing is put before further arithmetic: softplus of it
# and the gradient are exactly 0, and no infinity meets another.
NOTHING = -1e30


def lse_below(z: jax.Array, keep: jax.Array, group: jax.Array, rank: jax.Array, *,
              ties: bool) -> jax.Array:
  """[N], for each element the log-sum-exp of z over the elements of its group that rank
  below it; NOTHING where there is none.

  z [N] float32, keep [N] bool: elements that are not kept count nowhere; group [N]
  int32, 0 or more; rank [N] float32. With `ties` those of equal rank, itself among
  them, count as well. Takes O(N log N), and is differentiable in z.
  """
  size = z.shape[0]
  group = jnp.where(keep, group, jnp.iinfo(jnp.int32).max)
  rank = jnp.where(keep, rank, 0)
  order = jnp.lexsort((rank, group))
  z = jnp.where(keep, z, NOTHING)[order]
  group, rank = group[order], rank[order]
  opens = jnp.concatenate([jnp.ones(1, bool), group[1:] != group[:-1]])
  steps = opens | jnp.concatenate([jnp.ones(1, bool), rank[1:] != rank[:-1]])
  upto = lax.associative_scan(_joined, (z, opens))[0]
  places = jnp.arange(size, dtype=jnp.int32)
  if ties:  # up to the last of its rank
    ends = jnp.concatenate([steps[1:], jnp.ones(1, bool)])
    last = lax.cummin(jnp.where(ends, places, size), reverse=True)
    found = upto[last]
  else:  # up to the one before the first of its rank
    first = lax.cummax(jnp.where(steps, places, 0))
    found = jnp.where(opens[first], NOTHING, upto[jnp.maximum(first - 1, 0)])
  found = jnp.zeros_like(z).at[order].set(found)
  return jnp.where(keep, found, NOTHING)


def _joined(a, b):
  """Two stretches as one: the second begins anew where its group opens in it."""
  (x, opened), (y, opens) = a, b
  return jnp.where(opens, y, jnp.logaddexp(x, y)), opened | opens
