"""Losses by scores as sentences: loops over rows and pairs in float64, with slopes."""

import dataclasses

import numpy as np
import torch

from tests.helpers.info_nce_loops import example


def scored(seed=0, missing=0.2, **fields):
  """Rows with any number of passages, some without a score, in any order."""
  q, p, pair = example(seed, **fields)
  rng = np.random.default_rng(seed)
  score = rng.normal(size=len(p)).astype(np.float32) * 5
  score[rng.random(len(p)) < missing] = np.nan
  return q, p, dataclasses.replace(pair, score=score)


def value_and_slopes(loss, q, p, *args):
  """The value of `loss` in float64, and its gradients by q and p."""
  q, p = (torch.tensor(np.float64(x), requires_grad=True) for x in (q, p))
  a, b = (x / x.norm(dim=1, keepdim=True) for x in (q, p))
  total = loss(a, b, *args)
  total.backward()
  return total.item(), q.grad.numpy(), p.grad.numpy()


def passages_of(pair, i):
  """The passages of row i that have scores."""
  return [c for c in range(len(pair.owner))
          if pair.owner[c] == i and not np.isnan(pair.score[c])]


def _teacher(pair, own, cfg):
  return torch.tensor(np.float64(pair.score[own])) / cfg.teacher_temperature


def distill_kl(q, p, pair, cfg):
  rows = []
  for i in range(len(q)):
    if len(own := passages_of(pair, i)) > 1:
      t = torch.softmax(_teacher(pair, own, cfg), 0)
      log_p = torch.log_softmax(p[own] @ q[i] / cfg.temperature, 0)
      rows.append((t * (t.log() - log_p)).sum())
  return sum(rows) / len(rows)


def margin_mse(q, p, pair, cfg):
  rows = []
  for i in range(len(q)):
    own = passages_of(pair, i)
    first = [c for c in own if pair.is_positive[c]]
    if first and len(own) > 1:
      s, t = p[own] @ q[i] / cfg.temperature, _teacher(pair, own, cfg)
      k = own.index(first[0])
      rows.append(sum(((s[k] - s[c]) - (t[k] - t[c]))**2
                      for c in range(len(own)) if c != k) / (len(own) - 1))
  return sum(rows) / len(rows)


def pair_mse(q, p, pair, cfg):
  rows = []
  for i in range(len(q)):
    if own := passages_of(pair, i):
      gap = p[own] @ q[i] / cfg.temperature - _teacher(pair, own, cfg)
      rows.append((gap**2).mean())
  return sum(rows) / len(rows)


def distill_stable(q, p, pair, cfg):
  """Candidates one after the other, best first, each against those that are left and
  what other rows brought; see LLM-Embedder's modeling_dense.py."""
  spot = {i: next(c for c in range(len(p))
                  if pair.owner[c] == i and pair.is_positive[c]) for i in range(len(q))}
  first, rows = dict(cfg.options).get('positive_first', True), []

  def shared(i):
    texts = {pair.passage_id[spot[i]], pair.query_id[i]}
    return [c for c in range(len(p)) if pair.owner[c] not in (-1, i)
            and cfg.negatives == 'batch' and pair.in_batch[i]
            and pair.passage_id[c] not in texts
            and not (pair.is_positive[c]
                     and pair.query_id[pair.owner[c]] == pair.query_id[i])]

  for i in range(len(q)):
    if not (own := passages_of(pair, i)):
      continue
    t = torch.softmax(_teacher(pair, own, cfg), 0)
    left = sorted(own, key=lambda c: (first and bool(pair.is_positive[c]),
                                      pair.score[c]), reverse=True)
    total = 0
    while left:
      z = p[[*left, *shared(i)]] @ q[i] / cfg.temperature
      total = total + t[own.index(left[0])] * (torch.logsumexp(z, 0) - z[0])
      left = left[1:]
    rows.append(total)
  return sum(rows) / len(rows)


def by_order(z, pair):
  """log(1 + sum exp(z_i - z_j)) over pairs of one source in the wrong order."""
  found = [c for i in range(len(pair.query_id)) for c in passages_of(pair, i)]
  terms = [z[i] - z[j] for i in found for j in found
           if pair.group[pair.owner[i]] == pair.group[pair.owner[j]]
           and pair.score[i] < pair.score[j]]
  return torch.logsumexp(torch.stack([torch.zeros(()).double(), *terms]), 0)


def cosent(q, p, pair, cfg):
  z = (q[np.maximum(pair.owner, 0)] * p).sum(1) / cfg.temperature
  return by_order(z, pair)


def angle(q, p, pair, cfg):
  """Complex numbers: the sum of the parts of x / y, over |x| / |y|."""
  x, y = q[np.maximum(pair.owner, 0)], p
  half = x.shape[1] // 2
  x, y = (torch.complex(v[:, :half], v[:, half:]) for v in (x, y))
  ratio = x * y.conj()  # of vectors of length 1 each
  return by_order((ratio.real + ratio.imag).sum(1).abs() / cfg.temperature, pair)
