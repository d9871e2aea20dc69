"""Search over vector stores: exact as numpy's, in integers as definitions say."""

import jax
import numpy as np
import pytest

from jaxembed import search, sharding, store
from jaxembed.evaluation import retrieval
from jaxembed.store import codes

CORPUS, QUERIES, WIDTH = 301, 7, 40


def _vectors(seed, count):
  x = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
  """The same vectors in every type, each in shards of 64."""
  folder, vectors = tmp_path_factory.mktemp('stores'), _vectors(0, CORPUS)
  for dtype in store.DTYPES:
    with store.Writer(folder / dtype, {}, CORPUS, WIDTH, dtype,
                      shard_rows=64) as writer:
      for shard in writer.shards():
        shard.append(codes.encode(
            vectors[shard.first:shard.first + shard.rows], dtype))
        shard.finish([f'doc {shard.first + i}' for i in range(shard.rows)])
      writer.finish()
  return {dtype: store.open(folder / dtype) for dtype in store.DTYPES}


def _best(scores, k):
  order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize('dtype', store.DTYPES)
def test_a_store_is_searched_as_the_floats_that_it_holds(stores, dtype):
  queries, held = _vectors(1, QUERIES), stores[dtype][:]
  scores, rows = search.top_k(queries, stores[dtype], 9, block=50)
  wanted, order = _best(queries.astype(np.float64) @ held.T.astype(np.float64), 9)
  np.testing.assert_array_equal(rows, order)
  np.testing.assert_allclose(scores, wanted, atol=1e-6)
  assert stores[dtype].ids_of(rows[0])[0] == f'doc {order[0, 0]}'


def _integer_scores(queries, found, dtype):
  """Definitions in loops over whole numbers."""
  if dtype == 'binary':
    bits, own = found[:] > 0, queries > 0
    return np.array([[-sum(int(a != b) for a, b in zip(q, d)) for d in bits]
                     for q in own], np.float64)
  stored = found.stored(slice(0, len(found)))
  asked = codes.encode(queries, 'int8')
  dots = np.array([[sum(int(a) * int(b) for a, b in zip(q, d))
                    for d in stored['vector']] for q in asked['vector']], np.float64)
  return dots * stored['scale']


@pytest.mark.parametrize('dtype', ['int8', 'binary'])
@pytest.mark.parametrize('devices', [0, 8])
def test_integers_choose_candidates_and_floats_order_them(stores, dtype, devices):
  mesh = sharding.make_mesh((devices, 1, 1)) if devices else None
  queries, found = _vectors(2, QUERIES), stores[dtype]
  scores, rows = search.quantized_top_k(
      queries, found, 5, oversample=3, mesh=mesh, block=33)
  _, candidates = _best(_integer_scores(queries, found, dtype), 15)
  exact = queries.astype(np.float64) @ found[:].T.astype(np.float64)
  for got, score, among, all_ in zip(rows, scores, candidates, exact):
    assert set(got) <= set(among)
    np.testing.assert_allclose(score, np.sort(all_[among])[::-1][:5], atol=1e-5)
    np.testing.assert_allclose(score, all_[got], atol=1e-5)


def test_rescoring_by_a_store_of_floats_finds_what_floats_find(stores):
  queries = _vectors(3, QUERIES)
  _, wanted = search.top_k(queries, stores['float32'], 5)
  found = {}
  for dtype in ('int8', 'binary'):
    scores, rows = search.quantized_top_k(queries, stores[dtype], 5, oversample=4,
                                          rescore=stores['float32'])
    found[dtype] = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows, wanted)])
    np.testing.assert_allclose(scores, np.einsum(
        'QE,QKE->QK', queries, stores['float32'].rows(rows.ravel()).reshape(
            QUERIES, 5, WIDTH)), atol=1e-6)
  assert found['int8'] == 1
  # 60 candidates of 301: everything has to be rescored to find everything by bits.
  _, rows = search.quantized_top_k(queries, stores['binary'], 5, oversample=61,
                                   rescore=stores['float32'])
  np.testing.assert_array_equal(rows, wanted)


def test_evaluation_ranks_a_store_by_its_ids(stores):
  queries = _vectors(6, 2)
  found = retrieval.rank(['a', 'b'], queries, stores['float32'].ids, stores['float32'],
                         depth=3, similarity='dot')
  _, order = _best(queries @ stores['float32'][:].T, 3)
  assert {q: list(run) for q, run in found.items()} == {
      q: [f'doc {k}' for k in row] for q, row in zip('ab', order)}


@pytest.mark.parametrize('k', [1, 300])
def test_memory_bounds_the_blocks_and_changes_nothing(stores, k):
  queries = _vectors(4, QUERIES)
  wanted = search.top_k(queries, stores['float32'], k)
  for memory in (1, 100_000):
    for got, want in zip(search.top_k(queries, stores['float32'], k, memory=memory),
                         wanted):
      np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_cannot_be_searched_in_integers_is_refused(stores):
  queries = _vectors(5, 1)
  with pytest.raises(ValueError, match=r'not in float32; use top_k'):
    search.quantized_top_k(queries, stores['float32'], 1)
  with pytest.raises(ValueError, match='of int8 or binary, not in ndarray'):
    search.quantized_top_k(queries, np.ones((3, WIDTH)), 1)
  with pytest.raises(ValueError, match='oversample is 0'):
    search.quantized_top_k(queries, stores['int8'], 1, oversample=0)
  with pytest.raises(ValueError, match='allows 1 to 301'):
    search.quantized_top_k(queries, stores['int8'], 302)
  assert jax.default_backend() == 'cpu'
