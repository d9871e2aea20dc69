"""The probe: MTEB's draws, its score on known vectors, and what it encodes."""

import types

import numpy as np
import pytest

from jaxembed.evaluation import classification


class _Clouds:
  """Stands for an Embedder: '2 17' is a point near corner 2."""

  def __init__(self, spread):
    self.spread, self.seen = spread, []

  def encode(self, texts, prompt_name=None, prompt=None, **_):
    self.seen += texts
    points = []
    for text in texts:
      corner, number = map(int, text.split())
      noise = np.random.default_rng((corner, number)).normal(size=3)
      points.append(np.eye(3)[corner] + self.spread * noise)
    return np.array(points, np.float32)


def _set(n, first=0):
  rows = [(f'{c} {i}', 'xyz'[c]) for i in range(first, first + n) for c in range(3)]
  return [list(side) for side in zip(*rows)]


def test_apart_is_right_and_mixed_is_chance():
  train, test = _set(20), _set(200, 1000)
  good, bad = _Clouds(0.05), _Clouds(100.0)
  assert classification.evaluate(good, *train, *test) == {'accuracy': 1, 'f1': 1}
  scores = classification.evaluate(bad, *train, *test)
  assert scores['accuracy'] == pytest.approx(1 / 3, abs=0.05)
  assert classification.evaluate(bad, *train, *test) == scores


def test_only_drawn_texts_are_encoded():
  model, train, test = _Clouds(0.1), _set(50), _set(4, 1000)
  classification.evaluate(model, *train, *test, samples_per_label=2, experiments=3)
  assert len(model.seen) == len(set(model.seen)) <= 3 * 2 * 3 + 12
  assert set(test[0]) <= set(model.seen)


def test_draws_are_mtebs():
  mteb = pytest.importorskip('mteb.abstasks.classification')
  datasets = pytest.importorskip('datasets')
  labels = np.random.default_rng(0).choice(list('abcdef'), 200,
                                           p=(.3, .3, .2, .1, .08, .02)).tolist()
  task = types.SimpleNamespace(seed=42, samples_per_label=8, label_column_name='label')
  rows = datasets.Dataset.from_dict({'label': labels})
  order, want = None, []
  for i in range(10):
    _, order, taken = mteb.AbsTaskClassification._undersample_data(
        task, rows, i, order)
    want.append(taken)
  got = classification.draws(labels, 8, 10, 42)
  assert [g.tolist() for g in got] == want


def test_mistakes():
  with pytest.raises(ValueError, match='got 2 and 1 for training'):
    classification.evaluate(_Clouds(1), ['0 1', '0 2'], ['x'], [], [])
  with pytest.raises(ValueError, match="label 'q' of the test set"):
    classification.evaluate(_Clouds(1), ['0 1'], ['x'], ['0 2'], ['q'])


@pytest.mark.slow
def test_banking77_is_the_public_figure(minilm, shared_data):
  """A minute or two: 3,080 test texts and what ten draws take of the others."""
  from jaxembed.data import beir
  from jaxembed.embedder import Embedder
  folder = shared_data / 'classification/banking77'
  train, test = (beir.load_labelled(folder, s) for s in ('train', 'test'))
  scores = classification.evaluate(Embedder.load(minilm), train.texts, train.labels,
                                   test.texts, test.labels)
  assert scores['accuracy'] == pytest.approx(0.8004, abs=5e-4)
