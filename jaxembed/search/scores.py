"""Scores of every query with every document of a block, on the device."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed import types

KINDS = ('dot', 'cosine', 'euclidean', 'manhattan', 'int8', 'binary')


def of(kind: str, queries, documents) -> types.Array:
  """queries [Q,E], documents [C,E] -> [Q,C] float32.

  For cosine both are of length 1. For int8 both are (codes [n,E] int8, scales [n]
  float32); products are summed in int32. For binary both are [n,W] uint32 words of
  bits, and a score is -(bits that differ).
  """
  if kind in ('dot', 'cosine'):
    return jnp.einsum('QE,CE->QC', queries, documents,
                      precision=lax.Precision.HIGHEST)
  if kind == 'int8':
    (a, of_a), (b, of_b) = queries, documents
    dot = lax.dot_general(a, b, (((1,), (1,)), ((), ())),
                          preferred_element_type=jnp.int32)
    return dot.astype(jnp.float32) * of_a[:, None] * of_b
  if kind == 'binary':
    differ = lax.population_count(queries[:, None] ^ documents[None])
    return -differ.sum(-1, dtype=jnp.int32).astype(jnp.float32)
  order = 1 if kind == 'manhattan' else 2
  # Differences, not the cancelling |q|^2 - 2qc + |c|^2; one query at a time, as all
  # differences of a block would be [Q,C,E].
  return lax.map(
      lambda query: -jnp.linalg.norm(documents - query, ord=order, axis=-1), queries)


@functools.lru_cache(maxsize=8)
def compiled(kind: str):
  """`of` as a jitted function of (queries, documents)."""
  return jax.jit(functools.partial(of, kind))
