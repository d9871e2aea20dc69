"""Rules against their definitions, candidate by candidate, in Python's floats."""

import itertools

import numpy as np
import pytest

from jaxembed.mining import rules as rules_
from jaxembed.mining.rules import REASONS, Rules

Q, K = 6, 9


def _table(seed):
  """A table with scores of both signs, of float32 that Python's floats hold."""
  rng = np.random.default_rng(seed)
  scores = -np.sort(-rng.normal(size=(Q, K)).astype(np.float32), axis=1)
  return {'is_positive': rng.random((Q, K)) < 0.15, 'same': rng.random((Q, K)) < 0.1,
          'near': rng.random((Q, K)).astype(np.float32),
          'scores': {'a': scores, 'b': rng.normal(size=(Q, K)).astype(np.float32)},
          'positive': {'a': rng.normal(size=Q).astype(np.float32),
                       'b': rng.normal(size=Q).astype(np.float32)}}


def _why(rules, table, q, k):
  """The first rule that candidate k of query q breaks, by the rules' definitions."""
  if table['is_positive'][q, k]:
    return 'positive'
  if rules.same_text and table['same'][q, k]:
    return 'same text'
  if rules.near_positive is not None and table['near'][q, k] >= rules.near_positive:
    return 'near a positive'
  rank = sum(not p for p in table['is_positive'][q, :k])
  if rank < rules.first_rank or (rules.last_rank and rank >= rules.last_rank):
    return 'rank'
  broken = set()
  for name in table['scores']:
    s, p = float(table['scores'][name][q, k]), float(table['positive'][name][q])
    if rules.margin is not None and s > p - rules.margin:
      broken.add('margin')
    if rules.share is not None:
      # 95% of a score of 0.8 is 0.76, and of -0.8, further away, it is -0.84.
      limit = p * rules.share if p > 0 else p * (2 - rules.share)
      if s > limit:
        broken.add('share')
    if rules.max_score is not None and s > rules.max_score:
      broken.add('max_score')
    if rules.min_score is not None and s < rules.min_score:
      broken.add('min_score')
  return next((name for name in REASONS if name in broken), None)


_SOME = {'share': (None, 0.95, 0.5), 'margin': (None, 0.3), 'max_score': (None, 0.4),
         'min_score': (None, -0.7), 'near_positive': (None, 0.8),
         'same_text': (True, False), 'first_rank': (0, 2), 'last_rank': (0, 5)}


@pytest.mark.parametrize('seed', range(3))
def test_each_combination_is_its_definition(seed):
  table = _table(seed)
  for values in itertools.product(*_SOME.values()):
    rules = Rules(**dict(zip(_SOME, values)))
    found = rules_.reasons(rules, **table)
    wanted = [[_why(rules, table, q, k) for k in range(K)] for q in range(Q)]
    assert [[REASONS[n] if n >= 0 else None for n in row] for row in found] == wanted


def test_a_share_of_a_negative_score_lies_below_it():
  """Multiplying would keep candidates that score above the positive."""
  scores = np.array([[-0.38, -0.4, -0.41, -0.5]], np.float32)
  none = np.zeros((1, 4), bool)
  why = rules_.reasons(
      Rules(share=0.95, near_positive=None), none, none, np.zeros((1, 4), np.float32),
      {'a': scores}, {'a': np.array([-0.4], np.float32)})
  assert [n >= 0 for n in why[0]] == [True, True, True, False]


def test_top_and_sampled_negatives():
  kept = np.random.default_rng(0).random((40, 30)) < 0.4
  for skip, count in ((0, 3), (2, 4)):
    taken = rules_.choose(Rules(num_negatives=count, skip=skip), kept, 0)
    for row, own in zip(kept, taken):
      assert np.flatnonzero(own).tolist() == np.flatnonzero(row)[
          skip:skip + count].tolist()
    rules = Rules(num_negatives=count, skip=skip, take='sample', seed=5)
    sample = rules_.choose(rules, kept, 0)
    places = np.cumsum(kept, 1) - 1
    assert (sample <= (kept & (places >= skip))).all()
    assert (sample.sum(1) == np.minimum((kept.sum(1) - skip).clip(0), count)).all()
    # A query's draw depends on its number, not on the block that it lies in.
    np.testing.assert_array_equal(rules_.choose(rules, kept[25:], 25), sample[25:])
    assert (sample != rules_.choose(Rules(
        num_negatives=count, skip=skip, take='sample', seed=6), kept, 0)).any()


def test_one_score_of_several_positives():
  scores = np.array([0.5, 0.25, -1, 3], np.float32)
  query = np.array([0, 0, 1, 2])
  for name, wanted in (('min', [0.25, -1, 3]), ('max', [0.5, -1, 3]),
                       ('mean', [0.375, -1, 3])):
    assert rules_.of_several(name, scores, query, 3).tolist() == wanted


def test_rules_that_make_no_sense_are_named():
  for wrong, says in (({'share': -0.1}, 'share'), ({'positive': 'best'}, 'positive'),
                      ({'num_negatives': 0}, 'num_negatives'),
                      ({'take': 'all'}, 'take'),
                      ({'first_rank': 5, 'last_rank': 5}, 'last_rank'),
                      ({'skip': -1}, 'skip'), ({'max_score': 'x'}, 'max_score')):
    with pytest.raises(ValueError, match=says):
      Rules(**wrong)
