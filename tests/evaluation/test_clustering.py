"""V-measure of groups that are there, that are not, and of sets."""

import numpy as np
import pytest

from jaxembed.evaluation import clustering


class _Named:
  """Stands for an Embedder: a text is a group's number, 'spread' noise apart."""

  def __init__(self, spread):
    self.spread = spread

  def encode(self, texts, prompt_name=None, prompt=None, **_):
    noise = np.random.default_rng(0).normal(size=(len(texts), 8))
    return np.eye(8, dtype=np.float32)[list(map(int, texts))] + self.spread * noise


def _texts(n):
  return np.random.default_rng(1).integers(0, 5, n).astype(str).tolist()


def test_groups_are_found_or_not():
  texts = _texts(600)
  assert clustering.evaluate(_Named(0.01), texts, texts)['v_measure'] > 0.99
  assert clustering.evaluate(_Named(50.0), texts, texts)['v_measure'] < 0.05


@pytest.mark.parametrize('count, sets', [
    (90, 1), (100, 1), (149, 1), (150, 2), (240, 2)])
def test_sets_are_consecutive(monkeypatch, count, sets):
  seen = []
  monkeypatch.setattr(clustering, '_v_measure', lambda x, y, seed: seen.append(y) or 1)
  texts = _texts(count)
  clustering.evaluate(_Named(1), texts, texts, set_size=100)
  assert len(seen) == sets
  assert [t for y in seen for t in y] == texts[:sum(map(len, seen))]
  assert count - sum(map(len, seen)) < 50


def test_every_text_needs_a_label():
  with pytest.raises(ValueError, match='got 2 and 1'):
    clustering.evaluate(_Named(1), ['1', '2'], ['a'])
