"""A batch with every complication, and the loss of it as sentences, in float64."""

import numpy as np

from jaxembed import config, types

INF = float('inf')


def unit(rng, n, e):
  x = rng.normal(size=(n, e))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed=0, queries=16, negatives=3, width=32, shuffle=True, groups=3):
  """Ragged negatives in any order, duplicate texts, own-only rows, padding."""
  rng = np.random.default_rng(seed)
  owner, positive = [], []
  for i in range(queries):
    count = 1 + (negatives if i % 3 else max(negatives - 2, 0))
    owner += [i] * count
    positive += [True] + [False] * (count - 1)
  total = queries * (1 + negatives)
  pad = total - len(owner)
  owner, positive = np.array(owner + [-1] * pad), np.array(positive + [False] * pad)
  if shuffle:
    order = rng.permutation(total)
    owner, positive = owner[order], positive[order]
  passage_id = np.arange(1000, 1000 + total)
  spots = [np.flatnonzero(positive & (owner == i))[0] for i in range(queries)]
  passage_id[spots[1]] = passage_id[spots[4]]  # two rows share a positive
  passage_id[np.flatnonzero(owner == 5)[0]] = passage_id[spots[2]]
  query_id = np.arange(queries) + 50
  query_id[3] = query_id[7]  # the same question twice
  in_batch = np.ones(queries, bool)
  in_batch[[0, 6]] = False
  group = np.arange(queries) % groups
  q, p = unit(rng, queries, width), unit(rng, total, width)
  p[spots] = p[spots] + 1.5 * q  # positives resemble their queries
  p /= np.linalg.norm(p, axis=-1, keepdims=True)
  def i32(x):
    return np.asarray(x, np.int32)
  return (q.astype(np.float32), p.astype(np.float32), types.Pairing(
      owner=i32(owner), is_positive=positive, query_id=i32(query_id),
      passage_id=i32(passage_id), group=i32(group), in_batch=in_batch))


def oracle(q, p, pair: types.Pairing, cfg: config.LossConfig, temperature=None):
  """The loss as sentences: loops over rows and candidates, float64."""
  if temperature is None:
    temperature = np.zeros(len(q))
  temperature = np.where(temperature > 0, temperature, cfg.temperature)
  q, p = np.float64(q), np.float64(p)
  queries, total = len(q), len(p)
  spot = {i: next(c for c in range(total)
                  if pair.owner[c] == i and pair.is_positive[c])
          for i in range(queries)}
  pid = {i: pair.passage_id[spot[i]] for i in spot}
  known = {i: {pair.query_id[i], pid[i], *(pair.known[i] if pair.known is not None
                                           else ())} for i in spot}

  def alpha(own):
    return cfg.hardness if cfg.hardness_on in (
        ('own', 'all') if own else ('shared', 'all')) else 0.0

  def limit(i):
    s = q[i] @ p[spot[i]]
    return min(s + cfg.margin, s + abs(s) * (cfg.relative_margin - 1)
               if cfg.relative_margin < INF else INF)

  def sees(i, c):
    o = pair.owner[c]
    if o < 0 or pair.passage_id[c] in known[i]:
      return False
    if pair.is_positive[c] and pair.query_id[o] == pair.query_id[i]:
      return False
    if o == i:
      return True
    return (pair.in_batch[i] and cfg.negatives == 'batch'
            and (not cfg.same_group or pair.group[o] == pair.group[i]))

  def peers(i):
    return [j for j in range(queries) if pair.in_batch[i]
            and not known[i] & {pair.query_id[j], pid[j]}
            and not known[j] & {pair.query_id[i], pid[i]}
            and (not cfg.same_group or pair.group[j] == pair.group[i])]

  def logits(term, i):
    scale = 1 / temperature[i]
    out = []
    if term == 'qd':
      for c in range(total):
        s = q[i] @ p[c]
        if sees(i, c) and s <= limit(i):
          out.append(s * (scale + alpha(pair.owner[c] == i)))
    if term == 'dq':
      for j in range(queries):
        s = q[j] @ p[spot[i]]
        if j != i and sees(j, spot[i]) and s <= limit(i):
          out.append(s * (scale + alpha(False)))
    if term in ('qq', 'dd'):
      for j in peers(i):
        s = q[i] @ q[j] if term == 'qq' else p[spot[i]] @ p[spot[j]]
        if term == 'dd' or s <= limit(i):
          out.append(s * (scale + alpha(False)))
    return out

  def row(values, i):
    if not values:
      return 0.0
    positive = q[i] @ p[spot[i]] / temperature[i]
    gap = np.logaddexp.reduce(values) - positive
    loss = gap if cfg.decoupled else np.logaddexp(0, gap)
    return loss * (1 / (1 + np.exp(-gap)))**cfg.focal_gamma

  terms = ('qd', 'dq') if cfg.symmetric else cfg.terms
  if cfg.symmetric:
    rows = [np.mean([row(logits(t, i), i) for t in terms]) for i in range(queries)]
  else:
    rows = [row([z for t in terms for z in logits(t, i)], i) for i in range(queries)]
  return np.mean(rows)
