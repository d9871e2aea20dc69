"""Search against a full sort, whatever the blocks and devices."""

import jax
import numpy as np
import pytest

from jaxembed import search, sharding
from tests.helpers.tiers import after


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
@pytest.mark.parametrize('k', after(1, [10, 1, 203]))
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
  monkeypatch.setattr(search.tiles, 'QUERIES', 4)
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


@pytest.mark.parametrize('similarity', ['cosine', 'euclidean', 'manhattan'])
@pytest.mark.parametrize('devices', [0, 8])
def test_other_similarities_equal_a_full_sort(similarity, devices):
  rng = np.random.default_rng(0)
  queries, corpus = rng.normal(size=(5, 8)), rng.normal(size=(70, 8)) * 3
  mesh = sharding.make_mesh((devices, 1, 1)) if devices else None
  scores, rows = search.top_k(queries, corpus, 9, block=4, mesh=mesh,
                              similarity=similarity)
  score = {'cosine': lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
           'euclidean': lambda a, b: -np.linalg.norm(a - b),
           'manhattan': lambda a, b: -np.abs(a - b).sum()}[similarity]
  wanted = np.array([[score(a, b) for b in corpus] for a in queries])
  order = np.argsort(-wanted, axis=1, kind='stable')[:, :9]
  np.testing.assert_array_equal(rows, order)
  np.testing.assert_allclose(scores, np.take_along_axis(wanted, order, 1), rtol=1e-5)


@pytest.mark.parametrize('similarity', ['dot', 'euclidean', 'manhattan'])
def test_scores_at_the_edge_of_float32_are_right_or_refused(similarity):
  edge = np.array([[8e18, 0], [-8e18, 0], [0, 1]])
  scores, rows = search.top_k(edge, edge, 3, similarity=similarity)
  assert np.isfinite(scores).all() and sorted(rows[0]) == [0, 1, 2]
  for bad in (1e20, 3e38, 1e39):
    with pytest.raises(ValueError, match='corpus vector 1 .*(overflow|beyond float32)'):
      search.top_k(np.ones((1, 2)), np.array([[1, 1], [bad, -bad]]), 1,
                   similarity=similarity)
  scores, _ = search.top_k(edge * 1e18, edge * 1e18, 1, similarity='cosine')
  np.testing.assert_allclose(scores, 1, rtol=1e-6)


def test_what_are_no_vectors_is_refused():
  real = np.ones((2, 3))
  for bad in (real.astype(complex), np.full((2, 3), 'a'), real.astype(object)):
    for pair in ((bad, real), (real, bad)):
      with pytest.raises(ValueError, match='real numbers'):
        search.top_k(*pair, 1)
  with pytest.raises(ValueError, match='no dimensions'):
    search.top_k(np.ones((1, 0)), np.ones((2, 0)), 1)
  for wrong in ({'k': 1.5}, {'k': True}, {'k': 1, 'block': 2.0}):
    with pytest.raises(ValueError, match='whole number'):
      search.top_k(real, real, **wrong)
  with pytest.raises(ValueError, match="'l3' is unknown"):
    search.top_k(real, real, 1, similarity='l3')


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
