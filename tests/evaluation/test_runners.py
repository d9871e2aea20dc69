"""Retrieval and STS runners, on vectors whose right answer is known."""

import numpy as np
import pytest
import pytrec_eval

from jaxembed.evaluation import metrics, retrieval, sts, tasks


class _Lookup:
  """Stands for an Embedder: texts are names of given vectors."""

  mesh = None

  def __init__(self, vectors, similarity='cosine'):
    self.vectors, self.calls = vectors, []
    self.similarity_fn_name = similarity

  def _encode(self, side, texts, prompt_name=None):
    self.calls.append((side, list(texts), prompt_name))
    return np.array([self.vectors[t] for t in texts], np.float32)

  def encode(self, texts, prompt_name=None, prompt=None, **_):
    return self._encode('both', texts, prompt_name)

  def encode_query(self, texts, prompt_name=None, prompt=None, **_):
    return self._encode('query', texts, prompt_name or prompt)

  def encode_document(self, texts, prompt_name=None, prompt=None, **_):
    return self._encode('document', texts, prompt_name or prompt)


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
  assert model.calls == [('query', ['q1', 'q2'], None),
                         ('document', ['a', 'b', 'c'], None)]


def test_a_query_can_be_kept_from_finding_itself():
  args = _Lookup(_VECTORS), _CORPUS, {'1': 'a'}, {'1': {'2': 1}}
  with pytest.warns(UserWarning, match=r"1 queries have the id of a document \(first "
                    "'1'\\), which is left out"):
    assert retrieval.evaluate(*args, cutoffs=(1,))['recall@1'] == 1
  assert retrieval.evaluate(*args, cutoffs=(1,), drop_same_id=False)['recall@1'] == 0


def test_judgements_of_absent_documents_are_trec_evals():
  qrels = {'x': {'1': 1, 'gone': 2}, 'y': {'lost': 1}}
  queries = {'x': 'q1', 'y': 'q2'}
  with pytest.warns(UserWarning, match="2 judgements name documents.*'gone'"):
    ours = retrieval.evaluate(_Lookup(_VECTORS), _CORPUS, queries, qrels, cutoffs=(3,))
  run = {q: {d: float(np.dot(_VECTORS[v], _VECTORS[t])) for d, t in _CORPUS.items()}
         for q, v in queries.items()}
  theirs = pytrec_eval.RelevanceEvaluator(
      qrels, {'ndcg_cut.3', 'recall.3', 'map_cut.3'}).evaluate(run)
  for name, measure in (('ndcg@3', 'ndcg_cut_3'), ('recall@3', 'recall_3'),
                        ('map@3', 'map_cut_3')):
    assert ours[name] == pytest.approx(np.mean([q[measure] for q in theirs.values()]))


def test_a_models_own_similarity_ranks_and_matches():
  long = _VECTORS | {'b': (8, 6)}  # the longest, but not the nearest by angle
  args = _CORPUS, {'x': 'q1'}, {'x': {'2': 1}}
  assert retrieval.evaluate(_Lookup(long), *args, cutoffs=(1,))['recall@1'] == 0
  dot = _Lookup(long, 'dot')
  assert retrieval.evaluate(dot, *args, cutoffs=(1,))['recall@1'] == 1
  far = retrieval.evaluate(_Lookup(long, 'euclidean'), *args, cutoffs=(1, 2, 3))
  assert (far['recall@1'], far['recall@2'], far['recall@3']) == (0, 0, 1)
  scores = [2.0, 3.0, 1.0]
  found = sts.evaluate(dot, ['a', 'a', 'a'], ['q1', 'b', 'c'], scores)
  assert found['pearson'] == pytest.approx(metrics.pearson([1, 8, 0], scores))
  with pytest.raises(ValueError, match='scores are all equal'):
    sts.evaluate(dot, ['a', 'a'], ['q1', 'b'], [1.0, 1.0])


def test_prompts_can_be_named_or_spelt_out():
  model = _Lookup(_VECTORS)
  retrieval.evaluate(model, _CORPUS, {'x': 'q1'}, {'x': {'1': 1}},
                     query_prompt='find: ', document_prompt_name='passage')
  assert [prompt for *_, prompt in model.calls] == ['find: ', 'passage']


def test_options_that_a_task_cannot_heed_are_refused():
  with pytest.raises(ValueError, match='prompt has no meaning for the task retrieval'):
    tasks.Options(prompt='a').check('retrieval')
  with pytest.raises(ValueError, match='document_prompt has no meaning'):
    tasks.Options(document_prompt='a').check('sts')
  with pytest.raises(ValueError, match='batch_size is 0'):
    tasks.Options(batch_size=0).check('sts')
  with pytest.raises(ValueError, match='ranks from 1'):
    tasks.Options(cutoffs=[0]).check('retrieval')


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
