"""Packing: every text once, whole, in a row that has room for it."""

import numpy as np
import pytest

from jaxembed import types
from jaxembed.data import Ragged, pack


def ragged(lengths, seed=0, prompt=0):
  """Texts of these lengths whose every token has its own id."""
  starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  ids = np.random.default_rng(seed).permutation(starts[-1]).astype(np.int32) + 1
  skip = np.minimum(prompt, np.asarray(lengths) - 1).astype(np.int32)
  return Ragged(ids, starts, skip, np.zeros(len(lengths), bool))


@pytest.mark.parametrize('high', [6, 20, 64])
def test_texts_lie_apart_in_rows_that_hold_them(high):
  lengths = np.random.default_rng(high).integers(1, high + 1, 300)
  plan = pack.fit(lengths, 64)
  taken = np.zeros((plan.rows, 64), int)
  for row, start, size in zip(plan.row, plan.start, lengths):
    assert start + size <= 64
    taken[row, start:start + size] += 1
  assert taken.max() == 1 and taken.sum() == lengths.sum()
  places = set(zip(plan.row, plan.segment))
  assert len(places) == 300 and plan.segment.max() < types.slots(64)
  assert set(plan.row) == set(range(plan.rows))
  assert plan.rows <= pack.most_rows(300, lengths.sum(), 64)
  # Best-fit decreasing needs at most 11/9 of the best plus 4 (Johnson 1973), where
  # it is tokens, not the number of texts, that fills a row.
  best = max(lengths.sum() / 64, 300 / types.slots(64))
  assert plan.rows <= 11 / 9 * best + 4


def test_a_text_as_long_as_the_row_and_nothing_at_all():
  assert pack.fit([64, 64], 64).rows == 2
  assert pack.fit([], 64).rows == 0


@pytest.mark.parametrize('shards', [1, 2, 4])
def test_what_is_packed_can_be_read_back(shards):
  rng = np.random.default_rng(0)
  counts = rng.integers(1, 4, 8)
  query = ragged(rng.integers(2, 9, 8), 1, prompt=3)
  passage = ragged(rng.integers(2, 33, counts.sum()), 2)
  first = np.concatenate([[0], np.cumsum(counts)])
  each, slots = 8 // shards, types.slots(32)
  parts = [pack.share_rows(query, passage, first, mine, shards, width=32, passages=3,
                           pad_id=0) for mine in (np.arange(8), np.arange(each))]
  tokens, query_at, passage_at = parts[0]
  rows = len(tokens.ids) // shards
  for texts, places, shard in (
      (query, query_at, np.arange(8) // each),
      (passage, passage_at, np.repeat(np.arange(8) // each, counts))):
    for i, at in enumerate(places):
      row = shard[i] * rows + at // slots
      here = tokens.segment[row] == at % slots
      np.testing.assert_array_equal(
          tokens.ids[row][here], texts.ids[texts.starts[i]:texts.starts[i + 1]])
      np.testing.assert_array_equal(
          tokens.pool[row][here],
          np.arange(texts.lengths[i]) >= texts.pool_from[i])
  assert tokens.mask.sum() == query.lengths.sum() + passage.lengths.sum()
  np.testing.assert_array_equal(tokens.ids[~tokens.mask], 0)
  assert not (tokens.pool & ~tokens.mask).any()
  # A process that holds the first device alone has the same rows.
  np.testing.assert_array_equal(parts[1][0].ids, tokens.ids[:rows])
  np.testing.assert_array_equal(parts[1][2], passage_at[:first[each]])
