"""Which masks a tile of scores needs: those by ids, owners and groups, or fewer.

Most tiles of a large batch need none: their rows and columns share no id and are of
one group. A kernel then leaves these masks out of the tile. Found by sorting ids
and blocks, O((B+N) log(B+N)) beside O(B*N*D) for the scores; no array of pairs exists.
A level may be too high, never too low.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed.kernels.contrastive.options import MaskVectors

# Equal ids are searched so far apart in sorted order; the rows of an id that more
# vectors share have all their tiles flagged.
_REACH = 4
_NOTHING = jnp.iinfo(jnp.int32).max
PLAIN, IDS, ALL = range(3)  # levels: no such mask, those by ids, owners and groups too
_PER_WORD = 8  # levels of two bits; 2**_SHIFT
_SHIFT = 3


def tile_levels(row: MaskVectors, col: MaskVectors, sizes: tuple[int, int],
                steps: tuple[int, int]) -> jax.Array:
  """[I,J] int32: the masks that each tile of steps[0] rows and steps[1] columns needs.

  sizes: B and N; the last tile of a side may be short.
  """
  tiles = tuple(-(-size // step) for size, step in zip(sizes, steps, strict=True))
  out = jnp.full(tiles, PLAIN, jnp.int32)
  if row.ids:
    out = jnp.where(_share_an_id(row.ids, col.ids, steps, tiles), IDS, out)
  if row.group is not None and col.group is not None:
    low, high = _ends(row.group, steps[0])
    col_low, col_high = _ends(col.group, steps[1])
    differ = (low != high)[:, None] | (low[:, None] != col_low) | (col_low != col_high)
    out = jnp.where(differ, ALL, out)
  elif row.owner is not None:
    out = jnp.full(tiles, ALL, jnp.int32)  # all pairs but those of equal owners
  return out


def pack(levels: jax.Array) -> jax.Array:
  """[I,J] -> [I,J/8] int32, the level of tile j in two bits of word j // 8."""
  words = -(-levels.shape[1] // _PER_WORD)
  levels = jnp.pad(levels, ((0, 0), (0, words * _PER_WORD - levels.shape[1])))
  levels = levels.reshape(levels.shape[0], words, _PER_WORD)
  return (levels << 2 * jnp.arange(_PER_WORD, dtype=jnp.int32)).sum(
      -1, dtype=jnp.int32)


def level_at(words: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
  """[] int32: the level of tile (i, j) in `pack`'s words, an array or a reference."""
  # No division: kernels run this for every tile.
  return (words[i, j >> _SHIFT] >> (2 * (j & _PER_WORD - 1))) & 3


def _ends(x, step):
  """Least and largest value of each block of `step`."""
  x = jnp.pad(x, (0, -x.shape[0] % step), mode='edge').reshape(-1, step)
  return x.min(1), x.max(1)


def _share_an_id(row_ids, col_ids, steps, tiles):
  """[I,J]: an id of a row is that of a column, at any place of the two tuples."""
  keys, blocks = [], []
  for place, pair in enumerate(zip(row_ids, col_ids, strict=True)):
    for ids, step, first in zip(pair, steps, (0, tiles[0]), strict=True):
      # Places are told apart; ids that now agree by chance cost a mask in vain.
      keys.append(ids ^ jnp.int32(place * 0x1E3779B1 & 0x7FFFFFFF))
      blocks.append(first + jnp.arange(ids.shape[0], dtype=jnp.int32) // step)
  # Of one id rows stand before columns, each in the order of their blocks.
  key, block = lax.sort((jnp.concatenate(keys), jnp.concatenate(blocks)), num_keys=2)
  of_row = block < tiles[0]
  codes = []
  for d in range(1, _REACH + 1):
    later, their = _later(block, d, 0), _later(key, d, _NOTHING)
    meets = _before_end(key, d) & (key == their) & of_row & (later >= tiles[0])
    codes.append(jnp.where(meets, block * tiles[1] + later - tiles[0], _NOTHING))
  far = _before_end(key, _REACH + 1) & (key == _later(key, _REACH + 1, _NOTHING))
  crowded = far
  for d in range(1, _REACH + 2):
    crowded |= jnp.pad(far, (d, 0))[:far.shape[0]]
  area = tiles[0] * tiles[1]
  codes.append(jnp.where(crowded & of_row, area + block, _NOTHING))
  hit = _among(jnp.concatenate(codes), area + tiles[0])
  return hit[:area].reshape(tiles) | hit[area:][:, None]


def _later(x, d, fill):
  return jnp.pad(x, (0, d), constant_values=fill)[d:]


def _before_end(x, d):
  return jnp.arange(x.shape[0]) < x.shape[0] - d


def _among(codes, count):
  """[count] bool: the number is one of the codes. By sorting: a TPU scatters slowly."""
  codes = jnp.where(codes == _NOTHING, codes, codes * 2)
  numbers = jnp.arange(count, dtype=jnp.int32) * 2 + 1
  order = jnp.sort(jnp.concatenate([codes, numbers]))
  before = jnp.pad(order, (1, 0))[:-1]
  first = jnp.arange(order.shape[0]) == 0
  is_number = (order & 1 == 1) & (order != _NOTHING)
  hit = is_number & (before == order - 1) & ~first
  # The numbers, in their order, each with its answer in the last bit.
  told = jnp.where(is_number, order - 1 + hit, _NOTHING)
  return jnp.sort(told)[:count] & 1 == 1
