"""Re-mining with fewer documents encoded again finds what full re-mining finds."""

import dataclasses
import json

import numpy as np
import pytest

from jaxembed.config import SourceConfig
from jaxembed.mining import candidates, inputs, miner, refresh
from tests.helpers.fake_embedder import Fake, random_vector

WIDTH, ROWS, DEPTH = 8, 6, 5


def _moved(step, name):
  """A model whose vectors have moved by about `step`."""
  return Fake(lambda text: _before(text) + step * _direction(text), WIDTH, name)


def _before(text):
  x = random_vector(text, WIDTH)
  return x / np.linalg.norm(x)


def _direction(text):
  x = random_vector('moves ' + text, WIDTH)
  return x / np.linalg.norm(x)


@pytest.fixture
def run(tmp_path):
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(
      {'query': f'query {i}', 'pos': [f'answer {i}']}) + '\n' for i in range(ROWS)))
  (tmp_path / 'corpus.txt').write_text(''.join(f'doc {i}\n' for i in range(400)))
  texts = inputs.collect(tmp_path / 'run', SourceConfig(
      name='r', path=str(tmp_path / 'rows.jsonl')), tmp_path / 'corpus.txt')
  stores = miner.encode(texts, _moved(0, 'before'), 'model')
  return texts, stores


@pytest.mark.parametrize('step', [0.0, 0.02, 0.1, 0.5])
def test_candidates_are_those_of_full_re_mining(run, tmp_path, step):
  texts, stores = run
  model = _moved(step, 'after')
  found = refresh.refresh(texts, model, *stores, tmp_path / 'new', depth=DEPTH,
                          sample=40)
  documents = [texts.documents[k][0]['text'] for k in range(len(texts.documents))]
  now = model.encode(documents)
  movement = np.linalg.norm(now - stores[1][:], axis=1)
  assert movement.max() <= found.bound + 1e-7
  assert sum(t in set(documents) for t in model.encoded) - len(documents) == (
      found.encoded)
  if step == 0:
    assert found.encoded < 100 and found.moved == 0
  if step == 0.02:
    assert found.encoded < 250
  asked = model.encode([f'query {i}' for i in range(ROWS)])
  wanted = np.argsort(-(asked @ now.T), axis=1)
  there = dataclasses.replace(texts, folder=tmp_path / 'new')
  candidates.find(there, 'model', found.queries, found.documents, DEPTH, 'cosine')
  np.testing.assert_array_equal(candidates.Table.load(there).rows, wanted[:, :DEPTH])


def test_what_moved_further_than_the_sample_raises_the_bound(run, tmp_path):
  """One document that lies near a query runs away from its neighbours."""
  texts, stores = run
  far = 'doc 7'
  model = Fake(lambda text: _before(text) + (
      2.0 if text == far else 0.01) * _direction(text), WIDTH, 'after')
  (number,) = [k for k in range(400) if texts.documents[k][0]['text'] == far]
  model_vectors = {f'query {i}': stores[1].rows([number])[0] for i in range(ROWS)}
  near = Fake(lambda text: model_vectors.get(text, model._vector(text)), WIDTH, 'after')
  found = refresh.refresh(texts, near, *stores, tmp_path / 'new', depth=DEPTH,
                          sample=20)
  now = near.encode([texts.documents[k][0]['text'] for k in range(406)])
  assert found.moved > 0.5 and found.bound >= found.moved
  wanted = np.argsort(-(near.encode(['query 0']) @ now.T), axis=1)[0, :DEPTH]
  rows = np.argsort(-(found.queries[0:1] @ found.documents[:].T), axis=1)[0, :DEPTH]
  np.testing.assert_array_equal(rows, wanted)


def test_it_is_found_again_and_other_weights_are_refused(run, tmp_path):
  texts, stores = run
  model = _moved(0.05, 'after')
  first = refresh.refresh(texts, model, *stores, tmp_path / 'new', depth=DEPTH)
  count = len(model.encoded)
  again = refresh.refresh(texts, model, *stores, tmp_path / 'new', depth=DEPTH)
  assert len(model.encoded) == count and again.encoded == first.encoded
  with pytest.raises(ValueError, match="model was 'after', is 'later'"):
    refresh.refresh(texts, _moved(0.1, 'later'), *stores, tmp_path / 'new', depth=DEPTH)
