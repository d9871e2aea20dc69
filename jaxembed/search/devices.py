"""Search on accelerators: blocks of the corpus pass over the devices of a mesh."""

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from jaxembed.search import scores as scores_, tiles


def top_k(queries, corpus, k: int, block: int, tile: Callable, kind: str,
          mesh: jax.sharding.Mesh | None) -> tuple[np.ndarray, np.ndarray]:
  """The k best corpus rows of every query: scores [Q,k], rows [Q,k] int32.

  Args:
    tile: (rows, start, size, what) -> arrays of that many rows, or fewer at the end.
    kind: one of scores.KINDS.
  """
  number = mesh.size if mesh is not None else 1
  rows = min(block, -(-len(corpus) // number)) * number
  width = min(tiles.QUERIES, len(queries))

  def part(of, start: int, size: int, what: str):
    return jax.tree.map(lambda x: tiles.padded(x, size), tile(of, start, size, what))

  step, place = _compiled(mesh, k, kind)
  asked = [jax.tree.map(jnp.asarray, part(queries, start, width, 'query'))
           for start in range(0, len(queries), width)]
  best = [_nothing(width, k) for _ in asked]
  for start in range(0, len(corpus), rows):
    documents = place(part(corpus, start, rows, 'corpus'))
    count = np.int32(min(rows, len(corpus) - start))
    best = [step(found, query, documents, np.int32(start), count)
            for found, query in zip(best, asked)]
  scores, found = (np.concatenate(some)[:len(queries)]
                   for some in zip(*jax.device_get(best)))
  return scores, found


@functools.lru_cache(maxsize=32)
def _compiled(mesh, k: int, kind: str):
  """(the jitted step, how a block of documents is placed) for a mesh or None."""
  step = functools.partial(_step, k=k, kind=kind)
  if mesh is None:
    return jax.jit(step, donate_argnums=0), lambda x: jax.tree.map(jnp.asarray, x)
  names = mesh.axis_names
  step = jax.shard_map(
      functools.partial(step, names=names), mesh=mesh,
      in_specs=(P(), P(), P(names), P(), P()), out_specs=P(), check_vma=False)
  sharding = NamedSharding(mesh, P(names))
  return (jax.jit(step, donate_argnums=0),
          lambda documents: jax.device_put(documents, sharding))


def _step(best, queries, documents, start, count, *, k, kind, names=()):
  """Best k of `best` and of a block.  queries [Q,E], documents [C,E].

  Lower rows stand first wherever lists are joined, and `lax.top_k` keeps the
  order of equals: hence ties fall to the lower row. Under a mesh `documents` is
  this device's slice of the block.
  """
  scores = scores_.of(kind, queries, documents)
  held = scores.shape[1]
  offset = held * (lax.axis_index(names) if names else 0)
  rows = offset + jnp.arange(held, dtype=jnp.int32)
  scores = jnp.where(rows < count, scores, -jnp.inf)
  near, place = lax.top_k(scores, min(k, held))
  rows = rows[place] + start
  if names:  # all-gather the few survivors of every slice
    near, rows = (lax.all_gather(x, names, axis=1, tiled=True)
                  for x in (near, rows))
  scores = jnp.concatenate([best[0], near], 1)
  rows = jnp.concatenate([best[1], rows], 1)
  scores, place = lax.top_k(scores, k)
  return scores, jnp.take_along_axis(rows, place, 1)


def _nothing(width: int, k: int):
  return jnp.full((width, k), -jnp.inf), jnp.zeros((width, k), jnp.int32)
