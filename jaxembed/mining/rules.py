"""Rules that tell hard negatives from false ones, by scores alone.

The share of the positive's score is NV-Retriever's rule (arXiv:2407.15831), which
NV-Embed-v2 uses with 0.95; rank windows are KaLM's and F2LLM's.
"""

import dataclasses

import numpy as np

from jaxembed.config.check import one_of, require, typed

# Why a candidate is no negative, in the order in which rules are asked.
REASONS = ('positive', 'same text', 'near a positive', 'rank', 'margin', 'share',
           'max_score', 'min_score')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Which candidates of a query may serve as its negatives, and how many do.

  share: at most this share of the positive's score, 0.95 in NV-Embed-v2. Of a
    negative score the share lies below it too: positive - |positive| (1 - share).
  margin: at least so much below the positive's score.
  max_score, min_score: at most, at least this score.
  near_positive: a candidate whose cosine to a positive is this or more is taken for
    an edited copy of it.
  same_text: a candidate that equals the query or a positive in letters and digits is
    none.
  first_rank, last_rank: ranks that are looked at, from 0, positives not counted;
    last_rank is the first that is not, 0: to the end.
  skip: of what the other rules leave, so many from the top are left out.
  positive: with several positives, the score that counts: min, mean or max.
  teacher: whose scores the rules compare; '': of the teacher that searched; 'every':
    a rule that one teacher's scores break is broken.
  num_negatives: at most so many of a query.
  take: the top ones, or a sample.
  seed: of the sample.
  """

  share: float | None = 0.95
  margin: float | None = None
  max_score: float | None = None
  min_score: float | None = None
  near_positive: float | None = 0.9
  same_text: bool = True
  first_rank: int = 0
  last_rank: int = 0
  skip: int = 0
  positive: str = 'min'
  teacher: str = ''
  num_negatives: int = 7
  take: str = 'top'
  seed: int = 0

  def __post_init__(self):
    typed(self)
    one_of(self, 'positive', ('min', 'mean', 'max'))
    one_of(self, 'take', ('top', 'sample'))
    for name in ('first_rank', 'last_rank', 'skip'):
      require(self, name, getattr(self, name) >= 0, 'a number from 0 on')
    require(self, 'num_negatives', self.num_negatives >= 1, 'at least 1')
    require(self, 'last_rank', not self.last_rank or self.last_rank > self.first_rank,
            'above first_rank, or 0 for no end')
    for name, low in (('share', 0.0), ('margin', 0.0), ('near_positive', -1.0)):
      value = getattr(self, name)
      require(self, name, value is None or low <= value <= 2.0,
              f'from {low:g} to 2, or nothing for no such rule')


def reasons(rules: Rules, is_positive: np.ndarray, same: np.ndarray, near: np.ndarray,
            scores: dict[str, np.ndarray], positive: dict[str, np.ndarray]
            ) -> np.ndarray:
  """Of every candidate the first rule that it breaks: [q,K] int8, -1 for none.

  Args:
    is_positive, same [q,K] bool: it is a positive; its text is that of one, or of the
      query.
    near [q,K]: its cosine to the nearest positive.
    scores: by teacher [q,K]; those of the teachers that `rules` ask.
    positive: by teacher [q], the positive's score that counts.
  """
  rank = np.cumsum(~is_positive, axis=1) - 1
  nothing = np.zeros(is_positive.shape, bool)
  broken = {
      'positive': is_positive,
      'same text': same if rules.same_text else nothing,
      'near a positive': nothing if rules.near_positive is None
                         else near >= rules.near_positive,
      'rank': (rank < rules.first_rank) | (
          (rank >= rules.last_rank) if rules.last_rank else nothing)}
  broken |= dict.fromkeys(REASONS[len(broken):], nothing)
  for teacher, score in scores.items():
    own = positive[teacher][:, None]
    for name, limit, breaks in (
        ('margin', rules.margin, lambda s, p, x: s + x > p),
        # Not x * positive: of a negative score that lies above it.
        ('share', rules.share, lambda s, p, x: s > p - np.abs(p) * (1 - x)),
        ('max_score', rules.max_score, lambda s, p, x: s > x),
        ('min_score', rules.min_score, lambda s, p, x: s < x)):
      if limit is not None:
        broken[name] = broken[name] | breaks(score, own, np.float32(limit))
  found = np.full(is_positive.shape, -1, np.int8)
  for number, name in reversed(list(enumerate(REASONS))):
    found[broken[name]] = number
  return found


def choose(rules: Rules, kept: np.ndarray, first_query: int) -> np.ndarray:
  """Which of the candidates that break no rule are taken.  kept [q,K] bool -> [q,K].

  A query's sample depends on the seed and its number alone.
  """
  place = np.cumsum(kept, axis=1) - 1
  left = kept & (place >= rules.skip)
  if rules.take == 'top':
    return left & (place < rules.skip + rules.num_negatives)
  taken = np.zeros_like(left)
  for q in np.flatnonzero(left.any(1)):
    among = np.flatnonzero(left[q])
    rng = np.random.default_rng([rules.seed, int(first_query + q)])
    taken[q, rng.permutation(among)[:rules.num_negatives]] = True
  return taken


def of_several(positive: str, scores: np.ndarray, query: np.ndarray, count: int
               ) -> np.ndarray:
  """One score of each query's positives.

  scores [P], query [P] ascending from 0 to count - 1 -> [count] float32.
  """
  starts = np.searchsorted(query, np.arange(count))
  if positive == 'mean':
    return (np.add.reduceat(scores, starts) / np.bincount(query, minlength=count)
            ).astype(np.float32)
  return (np.minimum if positive == 'min' else np.maximum).reduceat(scores, starts)
