"""Retrieval and STS runners, on vectors whose right answer is known."""

import numpy as np
import pytest

from jaxembed.evaluation import metrics, retrieval, sts


class _Lookup:
  """Stands for an Embedder: texts are names of given vectors."""

  mesh = None

  def __init__(self, vectors):
    self.vectors, self.calls = vectors, []

  def _encode(self, side, texts, prompt_name=None):
    self.calls.append((side, list(texts), prompt_name))
    return np.array([self.vectors[t] for t in texts], np.float32)

  def encode(self, texts, prompt_name=None, **_):
    return self._encode('both', texts, prompt_name)

  def encode_query(self, texts, **_):
    return self._encode('query', texts)

  def encode_document(self, texts, **_):
    return self._encode('document', texts)


_VECTORS = {'q1': (1, 0), 'q2': (0, 1), 'a': (1, 0), 'b': (.8, .6), 'c': (0, 1)}
_CORPUS = {'1': 'a', '2': 'b', '3': 'c'}


def test_ranks_are_scored():
  model = _Lookup(_VECTORS)
  scores = retrieval.evaluate(
      model, _CORPUS, {'x': 'q1', 'y': 'q2', 'unjudged': 'q3'},
      {'x': {'1': 1}, 'y': {'2': 1}}, cutoffs=(1, 3))
  # x finds its document first, y second.
  assert scores['recall@1'] == 0.5 and scores['recall@3'] == 1
  assert scores['mrr@3'] == pytest.approx((1 + 1 / 2) / 2)
  assert scores['ndcg@3'] == pytest.approx((1 + 1 / np.log2(3)) / 2)
  assert model.calls == [('document', ['a', 'b', 'c'], None),
                         ('query', ['q1', 'q2'], None)]


def test_a_query_can_be_kept_from_finding_itself():
  args = _Lookup(_VECTORS), _CORPUS, {'1': 'a'}, {'1': {'2': 1}}
  assert retrieval.evaluate(*args, cutoffs=(1,))['recall@1'] == 0
  assert retrieval.evaluate(*args, cutoffs=(1,), drop_same_id=True)['recall@1'] == 1


def test_ranking_depth_is_what_was_asked():
  vectors = np.eye(4, dtype=np.float32)
  run = retrieval.rank(['a', 'x'], vectors[:2], list('abcd'), vectors, depth=2)
  assert [len(found) for found in run.values()] == [2, 2]
  run = retrieval.rank(['a'], vectors[:1], list('abcd'), vectors, depth=9)
  assert len(run['a']) == 4


def test_judged_queries_must_be_there():
  with pytest.raises(ValueError, match="first 'z'"):
    retrieval.evaluate(_Lookup(_VECTORS), _CORPUS, {}, {'z': {'1': 1}})


def test_sts_is_the_correlation_of_cosines():
  model = _Lookup(_VECTORS | {'q2': (0, 5)})  # length does not matter
  scores = [5.0, 1.0, 3.0]
  result = sts.evaluate(model, ['a', 'a', 'a'], ['q1', 'q2', 'b'], scores,
                        prompt_name='sts')
  assert result['spearman'] == 1
  assert result['pearson'] == pytest.approx(metrics.pearson([1, 0, .8], scores))
  # Each text once.
  assert model.calls == [('both', ['a', 'q1', 'q2', 'b'], 'sts')]


def test_sts_needs_whole_pairs():
  with pytest.raises(ValueError, match='got 1, 2 and 1'):
    sts.evaluate(_Lookup(_VECTORS), ['a'], ['a', 'b'], [1.0])
