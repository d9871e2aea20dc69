"""The two-stage experiment: its tasks, and the launcher with few texts."""

import json

import numpy as np
import pytest

from launch import tables
from launch.score_card import ScoreCard
from tests.helpers import launcher


class _Letters:
  """Stands for an Embedder: a text is how often it has each letter."""

  mesh, similarity_fn_name = None, 'cosine'

  def encode(self, texts, *_, **__):
    counts = [[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts]
    vectors = np.array(counts, np.float32) + 1e-3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

  encode_query = encode_document = encode


@pytest.mark.parametrize('small', [True, False])
def test_tasks(shared_data, small):
  """Letters tell something, and much less than a model (37, 82 and 80 points)."""
  scores = ScoreCard(shared_data, small).score(_Letters())
  assert list(scores) == ['Cranfield nDCG@10', 'STS-B Spearman', 'Banking77 accuracy']
  if not small:
    assert 0 < scores['Cranfield nDCG@10'] < 0.1
    assert 0.4 < scores['STS-B Spearman'] < 0.7
    assert 0.1 < scores['Banking77 accuracy'] < 0.5


def test_markdown():
  rows = [{'a': 1, 'b': 0.123456}, {'a': 'x', 'c': 2}]
  assert tables.markdown(rows) == (
      '| a | b | c |\n| --- | --- | --- |\n| 1 | 0.1235 |  |\n| x |  | 2 |')


@pytest.mark.slow
def test_the_experiment_runs_and_repeats_nothing(shared_data, minilm, tmp_path):
  table, again = launcher.small_experiment_twice('two_stage', shared_data, tmp_path)
  assert table.count('\n') >= 7 and table == again.split('\n\n')[-1]
  assert again.count('nothing to train') == 2
  scores = json.loads((tmp_path / 'small/mean-0/scores_blend.json').read_text())
  assert set(scores) == {'Cranfield nDCG@10', 'STS-B Spearman', 'Banking77 accuracy',
                         'seconds'}
