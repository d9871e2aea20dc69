"""The masks that a tile needs against a loop over all pairs."""

import jax
import numpy as np
import pytest

from jaxembed.kernels.contrastive import MaskVectors, flags


def levels(row, col, steps):
  """[I,J]: 0; 1 where an id masks a pair; 2 where a group does; of every pair."""
  by_group = row.group[:, None] != col.group
  by_id = np.zeros_like(by_group)
  for x, y in zip(row.ids, col.ids):
    by_id |= x[:, None] == y
  of_pair = np.where(by_group, 2, by_id)
  tiles = [-(-size // step) for size, step in zip(of_pair.shape, steps)]
  return np.array([[of_pair[i * steps[0]:(i + 1) * steps[0],
                            j * steps[1]:(j + 1) * steps[1]].max()
                    for j in range(tiles[1])] for i in range(tiles[0])])


@pytest.mark.parametrize('values', [3, 40, 10**9])
def test_no_tile_with_a_masked_pair_is_missed(values):
  rng = np.random.default_rng(values)
  found = jax.jit(lambda row, col: flags.tile_levels(row, col, (150, 90), (16, 11)))
  for _ in range(4):
    def side(size):
      return MaskVectors(
          ids=tuple(rng.integers(-3, values, size).astype(np.int32) for _ in range(3)),
          group=(rng.random(size) < 0.01).astype(np.int32))

    row, col = side(150), side(90)
    got, want = np.asarray(found(row, col)), levels(row, col, (16, 11))
    assert (got >= want).all()
    words = flags.pack(got)
    assert all(int(flags.level_at(words, i, j)) == got[i, j]
               for i in range(got.shape[0]) for j in range(got.shape[1]))


def test_tiles_without_one_need_none():
  """An in-batch step: each row's positive is one column, some texts come twice."""
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 2**31 - 1, 512).astype(np.int32)
  ids[rng.integers(0, 512, 5)] = ids[:5]
  query = rng.integers(0, 2**31 - 1, 512).astype(np.int32)
  one = np.zeros(512, np.int32)
  own = np.arange(512, dtype=np.int32)
  row = MaskVectors(ids=(ids, query, query), group=one, owner=own)
  col = MaskVectors(ids=(ids, query, ids), group=one, owner=own)
  got = np.asarray(flags.tile_levels(row, col, (512, 512), (16, 16)))
  np.testing.assert_array_equal(got, levels(row, col, (16, 16)))
  assert (got > 0).mean() < 0.05


@pytest.mark.thorough
def test_owners_alone_and_texts_of_which_there_are_many_need_masks_everywhere():
  one = np.zeros(64, np.int32)
  owners = MaskVectors(owner=one)
  assert flags.tile_levels(owners, owners, (64, 64), (16, 16)).min() == 2
  same = MaskVectors(ids=(one,))
  assert flags.tile_levels(same, same, (64, 64), (16, 16)).min() == 1
