"""Search against a full sort, whatever the blocks and devices."""

import jax
import numpy as np
import pytest

from jaxembed import search, sharding


def _sorted_search(queries, corpus, k):
  """The definition: all scores, sorted; equals in corpus order."""
  scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
  order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  return np.take_along_axis(scores, order, 1), order


def _integers(seed, *shape):
  """Small whole numbers: products are exact in float32 and ties abound."""
  return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


@pytest.mark.parametrize('devices', [0, 1, 8])
@pytest.mark.parametrize('block', [1, 7, 64, 1000])
@pytest.mark.parametrize('k', [1, 10, 203])
def test_equals_a_full_sort(devices, block, k):
  queries, corpus = _integers(0, 5, 8), _integers(1, 203, 8)
  mesh = None
  if devices:
    mesh = sharding.make_mesh((devices, 1, 1), devices=jax.devices()[:devices])
  scores, rows = search.top_k(queries, corpus, k, block=block, mesh=mesh)
  expected_scores, expected_rows = _sorted_search(queries, corpus, k)
  np.testing.assert_array_equal(rows, expected_rows)
  np.testing.assert_array_equal(scores, expected_scores)
  assert scores.dtype == np.float32 and rows.dtype == np.int32


def test_order_of_devices_on_a_mesh_of_three_axes():
  queries, corpus = _integers(0, 3, 4), _integers(1, 50, 4)
  _, rows = search.top_k(queries, corpus, 50, mesh=sharding.make_mesh((2, 2, 2)))
  np.testing.assert_array_equal(rows, _sorted_search(queries, corpus, 50)[1])


def test_many_queries_are_tiled(monkeypatch):
  monkeypatch.setattr(search, '_QUERIES', 4)
  queries, corpus = _integers(0, 11, 6), _integers(1, 30, 6)
  _, rows = search.top_k(queries, corpus, 5)
  np.testing.assert_array_equal(rows, _sorted_search(queries, corpus, 5)[1])


def test_memory_mapped_corpus(tmp_path):
  corpus = _integers(1, 100, 8)
  np.save(tmp_path / 'corpus.npy', corpus.astype(np.float16))
  mapped = np.load(tmp_path / 'corpus.npy', mmap_mode='r')
  queries = _integers(0, 2, 8)
  _, rows = search.top_k(queries, mapped, 7, block=32)
  np.testing.assert_array_equal(rows, _sorted_search(queries, corpus, 7)[1])


def test_no_queries():
  scores, rows = search.top_k(np.zeros((0, 4)), np.ones((3, 4)), 2)
  assert scores.shape == rows.shape == (0, 2)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='allows 1 to 3'):
    search.top_k(np.ones((1, 4)), np.ones((3, 4)), 4)
  with pytest.raises(ValueError, match='4 dimensions and the corpus has 5'):
    search.top_k(np.ones((1, 4)), np.ones((3, 5)), 1)
  with pytest.raises(ValueError, match='matrices'):
    search.top_k(np.ones(4), np.ones((3, 4)), 1)
  corpus = np.ones((9, 4))
  corpus[7, 1] = np.nan
  with pytest.raises(ValueError, match='corpus vector 7'):
    search.top_k(np.ones((1, 4)), corpus, 1, block=4)
