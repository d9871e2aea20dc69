"""mteb's own offline check of an encoder, and the order of its prompts."""

import types

import numpy as np
import pytest

from jaxembed.embedder import Embedder
from jaxembed.evaluation.mteb_model import MtebModel

mteb = pytest.importorskip('mteb')


@pytest.fixture(scope='module')
def embedder(minilm):
  return Embedder.load(minilm)


def test_meta_is_accepted(embedder):
  meta = MtebModel(embedder, 'org/model').mteb_model_meta
  assert meta.name == 'org/model'
  assert meta.embed_dim == 384
  assert meta.n_parameters == pytest.approx(22.7e6, rel=0.01)


def test_vectors_come_in_the_loaders_order(embedder):
  task = mteb.get_task('STSBenchmark').metadata
  got = MtebModel(embedder).encode(
      [{'text': ['a cat', 'a much longer sentence about dogs']}, {'text': ['x']}],
      task_metadata=task, hf_split='test', hf_subset='default')
  want = embedder.encode(['a cat', 'a much longer sentence about dogs', 'x'])
  np.testing.assert_array_equal(got, want)


def test_prompt_order(embedder):
  side = mteb.types.PromptType
  task = mteb.get_task('SciFact').metadata
  bare = types.SimpleNamespace(prompts={})
  template = 'Instruct: {instruction}\nQuery: '
  assert MtebModel(bare).prompt(task, side.query) == ''
  asked = MtebModel(bare, template=template).prompt(task, side.query)
  assert asked.startswith('Instruct: ')
  assert asked.endswith('\nQuery: ')
  assert MtebModel(bare, template=template).prompt(task, side.document) == ''
  own = types.SimpleNamespace(prompts={
      'query': 'q: ', 'passage': 'p: ', 'Retrieval': 'r: ', 'SciFact-query': 's: '})
  assert MtebModel(own).prompt(task, side.query) == 's: '
  assert MtebModel(own).prompt(task, side.document) == 'r: '
  del own.prompts['Retrieval']
  assert MtebModel(own).prompt(task, side.document) == 'p: '


@pytest.mark.slow
def test_every_mock_task_runs(embedder):
  results = mteb.mock_run(MtebModel(embedder))
  outcome = {name: type(result).__name__ for name, result in results.items()}
  assert [name for name, kind in outcome.items() if kind == 'TaskError'] == []
  assert list(outcome.values()).count('TaskResult') > 10
