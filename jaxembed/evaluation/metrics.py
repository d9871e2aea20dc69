"""Retrieval and correlation metrics in numpy: nDCG, recall, MAP, MRR, Spearman.

The retrieval measures follow trec_eval, which BEIR and MTEB report through
pytrec_eval: gains are linear, the discount is log2(rank + 1), scores are compared
as float32, and equal scores are ordered by document id, descending as a string.
They are means over the judged queries.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Qrels = Mapping[str, Mapping[str, int]]  # query id -> document id -> gain
Run = Mapping[str, Mapping[str, float]]  # query id -> document id -> score

CUTOFFS = (1, 3, 5, 10, 100, 1000)


def retrieval(qrels: Qrels, run: Run,
              cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
  """Measures of a run at every cutoff: 'ndcg@10', 'recall@10', 'map@10', 'mrr@10'.

  Means of what `per_query` gives.
  """
  return {name: float(np.mean(values))
          for name, values in per_query(qrels, run, cutoffs).items()}


def per_query(qrels: Qrels, run: Run, cutoffs: Sequence[int] = CUTOFFS
              ) -> dict[str, np.ndarray]:
  """Each query's measures at every cutoff, in the order of `qrels`: [Q] by name.

  A judged query without a relevant document counts, as 0. Raises ValueError if
  the run lacks a judged query: leaving it out would flatter the run.
  """
  if missing := [q for q in qrels if q not in run]:
    raise ValueError(
        f'{len(missing)} judged queries have no ranking, first {missing[0]!r}; rank '
        'every query of the qrels or remove its judgements')
  if not qrels:
    raise ValueError('no judged queries: the qrels are empty')
  check_cutoffs(cutoffs)
  gains, ideal = _ranked_gains(qrels, run, max(cutoffs))
  return {f'{name}@{k}': metric(gains, ideal, k)
          for name, metric in (('ndcg', ndcg), ('recall', recall),
                               ('map', average_precision), ('mrr', reciprocal_rank))
          for k in cutoffs}


def half_interval(values: np.ndarray) -> float:
  """Half of the 95% interval of a mean, by the normal approximation; NaN of one value.
  """
  if len(values) < 2:
    return float('nan')
  return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))


def check_cutoffs(cutoffs: Sequence[int]) -> None:
  """Raises ValueError unless all are ranks to cut at, and there is one."""
  if not cutoffs or min(cutoffs) < 1:
    raise ValueError(f'cutoffs are ranks from 1 on, got {tuple(cutoffs)}')


def ranking(scores: Mapping[str, float]) -> list[str]:
  """Document ids, best first, in trec_eval's order."""
  ids = np.array(list(scores), dtype=str)
  order = np.lexsort((ids, np.array(list(scores.values()), np.float32)))
  return ids[order[::-1]].tolist()


def ndcg(gains: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
  """Normalised discounted cumulative gain.  gains [Q,K], ideal [Q,R] -> [Q]."""
  best = _dcg(ideal, k)
  return np.divide(_dcg(gains, k), best, out=np.zeros_like(best), where=best > 0)


def recall(gains: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
  """Share of the relevant documents among the first k.  [Q,K], [Q,R] -> [Q]."""
  return (gains[:, :k] > 0).sum(-1) / np.maximum((ideal > 0).sum(-1), 1)


def average_precision(gains: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
  """Mean precision at the relevant ranks up to k.  [Q,K], [Q,R] -> [Q]."""
  hit = gains[:, :k] > 0
  precision = np.cumsum(hit, -1) / np.arange(1, hit.shape[1] + 1)
  return (precision * hit).sum(-1) / np.maximum((ideal > 0).sum(-1), 1)


def reciprocal_rank(gains: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
  """1 / rank of the first relevant document, 0 past k.  [Q,K] -> [Q]."""
  del ideal  # same signature as its siblings
  hit = gains[:, :k] > 0
  return np.where(hit.any(-1), 1.0 / (hit.argmax(-1) + 1), 0.0)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
  """Linear correlation of two vectors [N]; nan if either is constant."""
  x, y = _paired(x, y)
  x, y = x - x.mean(), y - y.mean()
  scale = np.sqrt((x * x).sum() * (y * y).sum())
  return float((x * y).sum() / scale) if scale > 0 else float('nan')


def spearman(x: np.ndarray, y: np.ndarray) -> float:
  """Pearson's correlation of the ranks; ties share the mean of their ranks."""
  x, y = _paired(x, y)
  return pearson(_average_ranks(x), _average_ranks(y))


def _ranked_gains(qrels: Qrels, run: Run, depth: int):
  """Gains in ranked order [Q,depth] and in the best order [Q,R], zero padded."""
  width = max(1, *(len(judged) for judged in qrels.values()))
  gains = np.zeros((len(qrels), depth))
  ideal = np.zeros((len(qrels), width))
  for row, (query, judged) in enumerate(qrels.items()):
    found = [judged.get(d, 0) for d in ranking(run[query])[:depth]]
    gains[row, :len(found)] = found
    ideal[row, :len(judged)] = sorted(judged.values(), reverse=True)
  # trec_eval knows no negative gain: such a document is simply not relevant.
  return np.maximum(gains, 0), np.maximum(ideal, 0)


def _dcg(gains: np.ndarray, k: int) -> np.ndarray:
  discount = 1 / np.log2(np.arange(2, min(k, gains.shape[1]) + 2))
  return gains[:, :k] @ discount


def _average_ranks(x: np.ndarray) -> np.ndarray:
  """Ranks from 1; equal values share the mean of the ranks they fill."""
  _, group, count = np.unique(x, return_inverse=True, return_counts=True)
  last = np.cumsum(count)
  return (last - (count - 1) / 2)[group]


def _paired(x, y):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
    raise ValueError(
        f'a correlation needs two vectors of one length >= 2, got {x.shape} and '
        f'{y.shape}')
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError('a correlation of non-finite values has no meaning')
  return x, y
