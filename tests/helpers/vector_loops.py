"""Losses by a teacher's vectors as sentences, in float64 (torch, for slopes)."""

import dataclasses

import numpy as np
import torch

from tests.helpers.info_nce_loops import example


def taught(seed=0, missing=0.2, width=12, near=0.0, **fields):
  """Rows with a teacher's vectors of any length, some without; `near`: how much they
  are like the model's."""
  q, p, pair = example(seed, **fields)
  rng = np.random.default_rng(seed)
  found = []
  for x in (q, p):
    y = rng.normal(size=(len(x), width)) + near * x[:, :width] * 3
    y[rng.random(len(x)) < missing] = np.nan
    found.append(np.float32(y))
  return q, p, dataclasses.replace(pair, query_teacher=found[0],
                                   passage_teacher=found[1])


def unit(x):
  x = torch.tensor(np.float64(x))
  return x / x.norm(dim=-1, keepdim=True)


def embed_match(q, p, pair, distance, kernel, bias):
  """q, p: as the model gives them."""
  def far(x, t):
    x, t = x @ kernel + bias, torch.tensor(np.float64(t))
    if distance == 'cosine':
      return 1 - torch.nn.functional.cosine_similarity(x, t, dim=0)
    return ((x - t)**2).mean() if distance == 'mse' else (x - t).norm()

  rows = []
  for i in range(len(q)):
    own = [(q[i], pair.query_teacher[i]), *(
        (p[c], pair.passage_teacher[c]) for c in range(len(p)) if pair.owner[c] == i)]
    own = [far(x, t) for x, t in own if not np.isnan(t).any()]
    if own:
      rows.append(sum(own) / len(own))
  return sum(rows) / len(rows)


def distill_batch(q, p, pair, cfg):
  tq, tp, rows = unit(pair.query_teacher), unit(pair.passage_teacher), []
  for i in range(len(q)):
    mine = [c for c in range(len(p)) if pair.owner[c] >= 0 and not tp[c].isnan().any()
            and (pair.owner[c] == i or (pair.in_batch[i] and (
                not cfg.same_group or pair.group[pair.owner[c]] == pair.group[i])))]
    if not tq[i].isnan().any() and len(mine) > 1:
      t = torch.softmax(tp[mine] @ tq[i] / cfg.teacher_temperature, 0)
      log_p = torch.log_softmax(p[mine] @ q[i] / cfg.temperature, 0)
      rows.append((t * (t.log() - log_p)).sum())
  return sum(rows) / len(rows)


def info_nce(q, p, pair, cfg, *, guide=None, mix_list=False, halves=0):
  """The terms of cfg with candidates that `guide`(positive's cosine by the teacher)
  limits, mixtures of hard negatives in `halves` (of two) and in one of all."""
  tq, tp = (unit(x) for x in (pair.query_teacher, pair.passage_teacher))
  spot = {i: next(c for c in range(len(p))
                  if pair.owner[c] == i and pair.is_positive[c]) for i in range(len(q))}
  texts = {i: {pair.query_id[i], pair.passage_id[spot[i]]} for i in spot}
  rows = []
  for i in spot:
    limit = guide(float(tq[i] @ tp[spot[i]])) if guide else np.inf

    def kept(t, limit=limit):
      return not float(t) > limit

    def sees(j, c):
      o = pair.owner[c]
      return (o >= 0 and pair.passage_id[c] not in texts[j]
              and not (pair.is_positive[c] and pair.query_id[o] == pair.query_id[j])
              and (o == j or (pair.in_batch[j] and cfg.negatives == 'batch')))

    peers = [j for j in spot if pair.in_batch[i] and not texts[i] & texts[j]]
    found = []
    for term in cfg.terms:
      if term == 'qd':
        own = [c for c in range(len(p)) if sees(i, c) and kept(tq[i] @ tp[c])]
        found += [q[i] @ p[c] for c in own]
        hard = [p[c] for c in own if pair.owner[c] == i]
        if len(hard) > 1 and mix_list:
          hard = torch.stack(hard)
          mean = torch.softmax(hard @ q[i] / cfg.temperature, 0) @ hard
          found.append(q[i] @ mean / mean.norm())
        if len(hard) > 1 and halves:  # all rows have two
          mean = hard[0] + hard[1]
          found += [q[i] @ mean / mean.norm()] * halves
      elif term == 'dq':  # the limit is that of the row whose positive it is
        found += [q[j] @ p[spot[i]] for j in spot if j != i and sees(j, spot[i])
                  and kept(tq[j] @ tp[spot[i]])]
      else:
        x, t = ((q, tq) if term == 'qq' else
                ([p[spot[j]] for j in spot], [tp[spot[j]] for j in spot]))
        found += [x[i] @ x[j] for j in peers if kept(t[i] @ t[j])]
    z = torch.stack([q[i] @ p[spot[i]], *found]) / cfg.temperature
    rows.append(torch.logsumexp(z, 0) - z[0])
  return torch.stack(rows)
