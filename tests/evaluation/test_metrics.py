"""Measures against trec_eval (pytrec_eval) and scipy, which share no code."""

import numpy as np
import pytest
import pytrec_eval
import scipy.stats

from jaxembed.evaluation import metrics

# Both sides work in float64; the sums have at most a thousand terms.
TOLERANCE = 1e-12


def _random_case(seed, *, ties):
  """Graded qrels, and a run with unjudged documents and (maybe) equal scores."""
  rng = np.random.default_rng(seed)
  qrels, run = {}, {}
  for q in range(20):
    docs = [f'd{i}' for i in rng.permutation(60)]
    judged = docs[:rng.integers(1, 15)]
    qrels[f'q{q}'] = {d: int(rng.integers(-1, 4)) for d in judged}
    scores = rng.integers(0, 6, 50) if ties else rng.normal(size=50)
    run[f'q{q}'] = {d: float(s) for d, s in zip(rng.permutation(docs)[:50], scores)}
  qrels['q0'] = {'d1': 0, 'd2': 0}  # judged, nothing relevant
  run['q1'] = {}  # nothing retrieved
  return qrels, run


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', range(5))
def test_retrieval_equals_trec_eval(seed, ties):
  qrels, run = _random_case(seed, ties=ties)
  cutoffs = (1, 3, 10, 1000)
  listed = ','.join(map(str, cutoffs))
  expected = pytrec_eval.RelevanceEvaluator(
      qrels, {f'ndcg_cut.{listed}', f'recall.{listed}', f'map_cut.{listed}',
              'recip_rank'}).evaluate(run)
  # trec_eval leaves out queries with an empty ranking; they are worth nothing.
  per_query = [expected.get(q, {}) for q in qrels]
  ours = metrics.retrieval(qrels, run, cutoffs)
  for k in cutoffs:
    for name, theirs in (('ndcg', 'ndcg_cut'), ('recall', 'recall'),
                         ('map', 'map_cut')):
      mean = np.mean([q.get(f'{theirs}_{k}', 0.0) for q in per_query])
      assert ours[f'{name}@{k}'] == pytest.approx(mean, abs=TOLERANCE), name
  mean = np.mean([q.get('recip_rank', 0.0) for q in per_query])
  assert ours['mrr@1000'] == pytest.approx(mean, abs=TOLERANCE)


def test_mrr_cuts_off():
  qrels = {'q': {'a': 1}}
  run = {'q': {'x': 3.0, 'y': 2.0, 'a': 1.0}}
  scores = metrics.retrieval(qrels, run, (2, 3))
  assert scores['mrr@2'] == 0 and scores['mrr@3'] == pytest.approx(1 / 3)


def test_order_of_equal_scores_is_trec_evals():
  # 1.0 and its successor in float64 are one float32 number.
  assert metrics.ranking({'a': 1.0, 'c': 1.0 + 1e-15, 'b': 1.0}) == ['c', 'b', 'a']


def test_order_of_the_dictionaries_does_not_matter():
  qrels, run = _random_case(0, ties=True)
  turned = {q: dict(reversed(docs.items())) for q, docs in run.items()}
  assert metrics.retrieval(qrels, run) == metrics.retrieval(qrels, turned)


@pytest.mark.parametrize('seed', range(5))
def test_correlations_equal_scipys(seed):
  rng = np.random.default_rng(seed)
  x, y = rng.normal(size=500), rng.integers(0, 6, 500).astype(float)
  y += x
  y[:250] = np.round(y[:250])  # many ties
  assert metrics.spearman(x, y) == pytest.approx(
      scipy.stats.spearmanr(x, y).statistic, abs=TOLERANCE)
  assert metrics.pearson(x, y) == pytest.approx(
      scipy.stats.pearsonr(x, y).statistic, abs=TOLERANCE)


def test_constant_has_no_correlation():
  assert np.isnan(metrics.spearman(np.ones(4), np.arange(4)))


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="first 'b'"):
    metrics.retrieval({'a': {'d': 1}, 'b': {'d': 1}}, {'a': {'d': 1.0}})
  with pytest.raises(ValueError, match='qrels are empty'):
    metrics.retrieval({}, {})
  with pytest.raises(ValueError, match='ranks from 1'):
    metrics.retrieval({'a': {'d': 1}}, {'a': {}}, (0, 10))
  with pytest.raises(ValueError, match=r'\(3,\) and \(2,\)'):
    metrics.spearman(np.ones(3), np.ones(2))
  with pytest.raises(ValueError, match='non-finite'):
    metrics.pearson(np.array([1, np.nan]), np.ones(2))
