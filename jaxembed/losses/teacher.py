"""A teacher's vectors of a batch, which rows bring: directions, and masks by them."""

import dataclasses
from typing import NamedTuple

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, types
from jaxembed.kernels import contrastive
from jaxembed.losses import masks, vectors


def required(pairing: types.Pairing, cfg: config.LossConfig) -> None:
  """Raises ValueError if the pairing has no teacher's vectors, which a loss reads."""
  if pairing.query_teacher is None:
    raise ValueError(
        f'LossConfig.name={cfg.name!r} reads the vectors of a teacher, and '
        'pairing.query_teacher is None; give sources a teacher (SourceConfig.teacher)')


def directions(pairing: types.Pairing, axes: tuple[str, ...]
               ) -> tuple[jax.Array, jax.Array]:
  """(of queries [Q,M], of passages [C,M]): vectors of length 1, NaN where is none.

  Rows are split over `axes`.
  """
  query, passage = (stop_gradient(vectors.unit(x)) for x in contrastive.split_rows(
      (pairing.query_teacher, pairing.passage_teacher), axes))
  return query, passage


class Guide(NamedTuple):
  """What a teacher's cosines say of in-batch candidates (Solatorio 2024, GISTEmbed)."""

  query: jax.Array  # [Q,M]
  passage: jax.Array  # [C,M]
  positive: jax.Array  # [Q,M]
  limit: jax.Array  # [Q], replicated; the highest cosine of a negative


def guide(pairing: types.Pairing, lay: masks.Layout, cfg: config.LossConfig,
          axes: tuple[str, ...], mode: str) -> Guide | None:
  """The guide that the option `guide` asks for; None: none.

  absolute: no negative may be nearer to the query, by the teacher, than the positive
  less guide_margin; relative: less that share of the positive's cosine. A text without
  a vector of the teacher's is never left out, nor does its row leave out any.
  """
  kind, margin = cfg.option('guide'), cfg.option('guide_margin')
  if not kind:
    return None
  required(pairing, cfg)
  query, passage = directions(pairing, axes)
  positive = lay.positives_of(passage, axes, mode)
  cosine = vectors.products(query, positive)
  limit = cosine - (margin if kind == 'absolute' else jnp.abs(cosine) * margin)
  return Guide(query, passage, positive, limit)


def guided(lay: masks.Layout, found: Guide | None) -> masks.Layout:
  """`lay` with the guide's vectors and limits on queries and passages."""
  if found is None:
    return lay
  return lay._replace(
      row=with_guide(lay.row, found.query, found.limit),
      col=with_guide(lay.col, found.passage, lay.at_positives(found.limit, jnp.inf)))


def with_guide(side: contrastive.MaskVectors, vectors: jax.Array,
               limit: jax.Array | None = None) -> contrastive.MaskVectors:
  """A side with its guide."""
  return dataclasses.replace(side, guide=vectors, guide_limit=limit)
