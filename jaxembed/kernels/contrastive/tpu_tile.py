"""What the Pallas TPU kernels of masked log-sum-exp share: one tile of scores.

A tile is worked on in sub-tiles (`in_turn`), written out one after another, so that the
compiler schedules the epilogue of one beside the product of the next.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.kernels.contrastive import flags, tile
from jaxembed.kernels.contrastive.options import MASKED, MaskVectors, Options

LANES = 128


class Static(NamedTuple):
  """What a kernel is specialised for."""

  structure: Any  # of (row, col), trees of vectors
  num_rows: int  # leaves of row
  opts: Options
  sizes: tuple[int, int]  # B and N, without what fills up the last tiles
  block: tuple[int, int]
  strips: int  # tiles of rows that stay in VMEM, the innermost dimension of the grid
  levels: tuple[int, ...]
  sub: tuple[int, int]  # rows and columns whose product and epilogue follow each other
  by_rows: bool  # the outermost dimension is of rows, else of columns

  def place(self, first_ref: Any) -> tuple[Any, Any]:
    """Row and column of the tile in hand, counted in tiles. first_ref: [1], the first
    group of rows of this call.
    """
    outer, middle, strip = (pl.program_id(i) for i in range(3))
    if self.by_rows:
      return (first_ref[0] + outer) * self.strips + strip, middle
    return first_ref[0] * self.strips + strip, outer * pl.num_programs(1) + middle

  def strip(self, packed: int = 1) -> Any:
    """The rows in hand, among those that stay. packed: rows to a word."""
    size = self.block[0] // packed
    return pl.ds(pl.multiple_of(pl.program_id(2) * size, size), size)


@dataclasses.dataclass(frozen=True)
class Matrix:
  """An operand in VMEM, read by static slices; tpu_pairs.of as single values."""

  ref: Any
  dtype: str

  @property
  def shape(self) -> tuple[int, int]:
    """Rows and columns of single values."""
    return self.ref.shape[0] * packed(self.ref), self.ref.shape[1]

  def __getitem__(self, at: Any) -> jax.Array:
    rows, columns = at if isinstance(at, tuple) else (at, slice(None))
    if packed(self.ref) == 1:
      return self.ref[rows, columns]
    return pltpu.bitcast(self.ref[rows.start // 2:rows.stop // 2, columns], self.dtype)


def packed(ref: Any) -> int:
  """Rows that a word of an operand holds."""
  return 2 if ref.dtype == jnp.uint32 else 1


def by_level(static: Static, marks_ref: Any, first_ref: Any, run: Callable) -> None:
  """run(level) with the masks that this tile needs."""
  if len(static.levels) == 1:
    run(static.levels[0])
    return
  found = flags.level_at(marks_ref, *static.place(first_ref))
  for level in static.levels:
    pl.when(found == level)(functools.partial(run, level))


def spread(static: Static, sides: Sequence[Any], wide: Sequence[Any]) -> list[Any]:
  """The rows in hand of the row vectors, over the lanes, [bm,128] each.

  Written to `wide` when the first columns come.
  """
  strip = static.strip()

  @pl.when(pl.program_id(1) == 0)
  def _():
    for ref, out in zip(sides[:static.num_rows], wide, strict=True):
      out[strip] = jnp.broadcast_to(ref[:, strip].T, (static.block[0], LANES))

  return [ref.at[strip] for ref in wide]


def spans(size: int, step: int) -> list[slice]:
  """Slices of `step`, the last may be shorter."""
  return [slice(x, min(x + step, size)) for x in range(0, size, step)]


def lanes(columns: slice) -> list[tuple[slice, slice]]:
  """128 columns at a time, counted in their sub-tile and in the tile."""
  return [(part, slice(columns.start + part.start, columns.start + part.stop))
          for part in spans(columns.stop - columns.start, LANES)]


def vectors(static: Static, level: int, sides: Sequence[Any], wide: Sequence[Any],
            rows: slice, at: slice) -> Any:
  """The trees (row, col) for some rows and 128 columns: [r,128] and [1,128].

  Without the masks that a tile of the level does not need.
  """
  found = jax.tree.unflatten(static.structure, [
      *(ref[rows] for ref in wide), *(ref[:, at] for ref in sides[static.num_rows:])])
  return jax.tree.map(functools.partial(_needed, level=level), found,
                      is_leaf=lambda x: isinstance(x, MaskVectors))


def _needed(side, level):
  if level == flags.ALL or not isinstance(side, MaskVectors):
    return side
  return dataclasses.replace(
      side, ids=side.ids if level == flags.IDS else (), owner=None, group=None)


def logits(static: Static, level: int, place: tuple[Any, Any], s: jax.Array,
           scale: jax.Array, row: MaskVectors, col: MaskVectors, rows: slice, at: slice
           ) -> tuple[Any, Any]:
  """tile.logits of some rows and columns of the tile at `place`, with pairs beyond
  the arrays masked.
  """
  r, c = tile.logits(s, scale, row, col, static.opts)
  (b, n), (bm, bn) = static.sizes, static.block
  if level == flags.ALL:
    if r is not None and n % bn:
      r = _within(r, n, place[1] * bn + at.start, 1)
    if c is not None and b % bm:
      c = _within(c, b, place[0] * bm + rows.start, 0)
  return r, c


def _within(direction, size, start, axis):
  z, keep = direction
  inside = start + lax.broadcasted_iota(jnp.int32, z.shape, axis) < size
  return jnp.where(inside, z, MASKED), inside if keep is None else keep & inside


def in_turn(static: Static, q_ref: Any, k_ref: Any
            ) -> Iterator[tuple[slice, slice, jax.Array]]:
  """(rows, columns) of a sub-tile, all rows of some columns first, with its scores."""
  q = Matrix(q_ref.at[static.strip(packed(q_ref))], static.opts.dtype)
  k = Matrix(k_ref, static.opts.dtype)
  for columns in spans(k.shape[0], static.sub[1]):
    for rows in spans(q.shape[0], static.sub[0]):
      yield rows, columns, product(q[rows], k[columns], (1, 1))


def product(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """a and b contracted over one dimension each, accumulated in float32."""
  return lax.dot_general(
      a, b, (((contract[0],), (contract[1],)), ((), ())),
      preferred_element_type=jnp.float32, precision=precision.of_dtype(a.dtype))


def split(refs: Sequence[Any], count: int) -> tuple[Any, Any]:
  """The first `count`, and the rest."""
  return refs[:count], refs[count:]
