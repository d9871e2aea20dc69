"""How the Pallas TPU kernels of masked log-sum-exp lay their tiles out and are called.

A group of rows, `strips` tiles of them, stays in VMEM while the columns pass by, once
per group: the traffic of HBM falls with the size of a group. The grid is (outer,
middle, strip); of the sums the outer dimension is of groups, of the gradients it is of
columns, a share for each core, and every call has one group.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxembed.kernels import choices, dispatch
from jaxembed.kernels.contrastive import flags, tpu_tile
from jaxembed.kernels.contrastive.options import MaskVectors, Options
from jaxembed.kernels.contrastive.tpu_tile import LANES

TILES = ((1024, 1024), (1024, 512), (1024, 256), (512, 512), (512, 256), (256, 256),
         (256, 128), (128, 128))
MOST_STRIPS = 8
_BLOCKS, _LIMIT = 3 / 4, 15 / 16  # of VMEM: for our blocks, and with the compiler's own
_SMALL = 2 << 20  # for vectors of a tile and the like
# Sub-tiles. A matrix unit must multiply as many rows as its weights have before it can
# take others: 256 on v6e, 128 elsewhere. More rows have more partial sums to hold.
_SUB, _OTHER_SUB = {'v6e': (256, 256)}, (128, 256)
CORES = {'v5p': 2}  # that run one program
_LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How scores [B,N] are cut."""

  block: tuple[int, int]  # rows and columns of a tile
  tiles: tuple[int, int]  # of the rows, of the columns
  strips: int  # tiles of a group of rows; divides tiles[0]
  cores: int = 1  # that take a share of the columns each

  @property
  def groups(self) -> int:
    """Groups of rows."""
    return self.tiles[0] // self.strips

  @property
  def group_rows(self) -> int:
    """Rows of a group."""
    return self.strips * self.block[0]

  def moved(self, d: int, itemsize: int, gradients: int = 0) -> int:
    """Bytes of HBM that a group of rows and the columns that pass by it take.

    gradients: of how many sides: 0 for the sums.
    """
    rows, columns = self.group_rows * d, self.tiles[1] * self.block[1] * d
    if not gradients:
      return (rows + columns) * itemsize
    return (rows * (gradients * itemsize + 4 * self.cores)
            + columns * (itemsize + 8 * (gradients - 1)))


def tiling(b: int, n: int, d: int, itemsize: int, wide: int, *, gradients: bool
           ) -> Tiling:
  """The tiles of which the most rows fit VMEM: the more, the less traffic of HBM.

  itemsize: of the operands. wide: number of vectors of the rows' side.
  Raises dispatch.Unsupported if none fits.
  """
  chip, found = choices.chip(), None
  # Of gradients q, q.T and dq stay, k and dk (read and written) stream; of sums q
  # and the statistics. What streams, or follows another group, is double-buffered.
  row = wide * LANES * 4 + (d * (2 * itemsize + 4) if gradients else
                            d * 2 * itemsize + 3 * LANES * 4)
  column = d * (2 * itemsize + 16 if gradients else 2 * itemsize)
  for bm, bn in TILES:
    bm, bn = min(bm, _up(b)), min(bn, _up(n))
    tiles = pl.cdiv(b, bm), pl.cdiv(n, bn)
    left = _vmem(_BLOCKS) - _SMALL - bn * column - bm * bn * itemsize * gradients
    strips = next((x for x in range(min(left // (bm * row), MOST_STRIPS), 0, -1)
                   if tiles[0] % x == 0), 0)
    cores = CORES.get(chip, 1) if gradients else 1
    cut = Tiling((bm, bn), tiles, strips, cores if tiles[1] % cores == 0 else 1)
    if strips and (found is None or cut.group_rows > found.group_rows):
      found = cut
  if found is not None:
    return found
  raise dispatch.Unsupported(
      f'tpu contrastive keeps whole vectors in VMEM; width {d} of {itemsize} bytes '
      "does not fit with 128 rows: use impl='blockwise', or bfloat16")


def _vmem(share: float) -> int:
  return int(choices.vmem() * share)


def _up(size: int) -> int:
  return pl.cdiv(size, LANES) * LANES


def operand(x: jax.Array, block: tuple[int, int], at: Callable, **how: Any
            ) -> tuple[jax.Array, pl.BlockSpec]:
  """An operand and its blocks. x: of tpu_pairs.of. block: in single values."""
  return x, pl.BlockSpec((block[0] // tpu_tile.packed(x), block[1]), at, **how)


def marks(row: MaskVectors, col: MaskVectors, sizes: tuple[int, int],
          block: tuple[int, int], opts: Options
          ) -> tuple[jax.Array | None, tuple[int, ...]]:
  """(Packed levels of all tiles, those that occur), None for the first where every
  tile takes the whole epilogue.

  Scores beyond the arrays are masked with the rest, so tiles that reach there need
  all. None as well where an owner weighs every logit.
  """
  parts = row.owner is not None or row.group is not None
  ragged = [use and size % step != 0 for use, size, step in zip(
      (opts.cols, opts.rows), sizes, block, strict=True)]
  if opts.hardness[0] != opts.hardness[1] or not (row.ids or parts or any(ragged)):
    return None, (flags.ALL,)
  found = flags.tile_levels(row, col, sizes, block)
  if ragged[0]:
    found = found.at[-1].set(flags.ALL)
  if ragged[1]:
    found = found.at[:, -1].set(flags.ALL)
  levels = flags.PLAIN, *[flags.IDS] * bool(row.ids), *[flags.ALL] * (
      parts or any(ragged))
  return flags.pack(found), levels


def call(kernel: Callable, name: str, tiling: Tiling, sizes: tuple[int, int],
         operands: Sequence[tuple[jax.Array, pl.BlockSpec]], scale: jax.Array,
         sides: tuple[Any, Any], opts: Options, marks: Any, first: jax.Array | int, *,
         results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
         scratch: Sequence[Any], products: int, moved: int, groups: int, by_rows: bool,
         aliases: dict[int, int] | None = None) -> list[jax.Array]:
  """Runs `kernel` over `groups` groups of rows, from group `first` on.

  operands: q, k and others; sides: trees of the vectors of rows and of columns.
  products, moved: matrix products per tile and bytes of HBM of a group, for the
  scheduler. aliases: operand -> result in whose place it is.
  """
  words, levels = marks
  (bm, bn), strips, grid = tiling.block, tiling.strips, (
      groups if by_rows else tiling.cores,
      tiling.tiles[1] // (1 if by_rows else tiling.cores), tiling.strips)
  row, col = jax.tree.leaves(sides[0]), jax.tree.leaves(sides[1])
  scale, sides, opts = _to_base_2(scale, sides, opts)
  leaves = jax.tree.leaves(sides)
  static = tpu_tile.Static(jax.tree.structure(sides), len(row), opts, sizes,
                           tiling.block, strips, levels,
                           _SUB.get(choices.chip(), _OTHER_SUB), by_rows)

  def row_at(o, m, s, _, first):
    return 0, first[0] + o if by_rows else first[0]

  def col_at(o, m, s, *_):
    return 0, m if by_rows else o * grid[1] + m

  spec = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2, grid=grid,
      in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *(s for _, s in operands),
                *[pl.BlockSpec((1, strips * bm), row_at)] * len(row),
                *[pl.BlockSpec((1, bn), col_at)] * len(col)],
      out_specs=[s for _, s in results],
      scratch_shapes=[*scratch, *(pltpu.VMEM((strips * bm, LANES), x.dtype)
                                  for x in row)])
  if words is None:
    words = jnp.zeros((1, 1), jnp.int32)
  scores = groups * strips * bm * sizes[1]
  return pl.pallas_call(
      functools.partial(kernel, static), grid_spec=spec,
      out_shape=[x for x, _ in results],
      input_output_aliases={3 + i: j for i, j in (aliases or {}).items()},
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
          vmem_limit_bytes=_vmem(_LIMIT)),
      cost_estimate=pl.CostEstimate(
          flops=2 * products * scores * operands[0][0].shape[1],
          transcendentals=scores, bytes_accessed=groups * moved),
      interpret=pltpu.InterpretParams() if opts.interpret else False, name=name,
  )(words, jnp.asarray(first, jnp.int32).reshape(1), scale.reshape(1),
    *(x for x, _ in operands), *(x[None, :] for x in leaves))


def _to_base_2(scale, sides, opts) -> tuple[Any, tuple[Any, Any], Options]:
  """Scales, biases and log-sum-exps in units of log 2: an exponential less a product.

  sides: (row, col), each a MaskVectors or (MaskVectors, (lse or None, cotangent)).
  """
  def turn(side):
    if isinstance(side, MaskVectors):
      return dataclasses.replace(
          side, scale=times(side.scale), bias=times(side.bias))
    masks, ct = side
    return turn(masks), None if ct is None else (times(ct[0]), ct[1])

  def times(x):
    return None if x is None else x * _LOG2E

  hardness = opts.hardness[0] * _LOG2E, opts.hardness[1] * _LOG2E
  return (scale * _LOG2E, tuple(map(turn, sides)),
          dataclasses.replace(opts, hardness=hardness))
