"""mteb's own offline check of an encoder, and the order of its prompts."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from jaxembed.embedder import Embedder
from jaxembed.evaluation.mteb_model import MtebModel


@pytest.fixture(autouse=True, scope='module')
def mteb():
  return pytest.importorskip('mteb')


def test_meta_is_accepted(embedder):
  meta = MtebModel(embedder, 'org/model').mteb_model_meta
  assert meta.name == 'org/model'
  assert meta.embed_dim == 384
  assert meta.n_parameters == pytest.approx(22.7e6, rel=0.01)


def test_vectors_come_in_the_loaders_order(mteb, embedder):
  task = mteb.get_task('STSBenchmark').metadata
  got = MtebModel(embedder).encode(
      [{'text': ['a cat', 'a much longer sentence about dogs']}, {'text': ['x']}],
      task_metadata=task, hf_split='test', hf_subset='default')
  want = embedder.encode(['a cat', 'a much longer sentence about dogs', 'x'])
  np.testing.assert_array_equal(got, want)


def test_prompt_order(mteb, embedder):
  side = mteb.types.PromptType
  task = mteb.get_task('SciFact').metadata
  bare = types.SimpleNamespace(prompts={})
  template = 'Instruct: {instruction}\nQuery: '
  assert MtebModel(bare).prompt(task, side.query) is None
  asked = MtebModel(bare, template=template).prompt(task, side.query)
  assert asked.startswith('Instruct: ')
  assert asked.endswith('\nQuery: ')
  assert MtebModel(bare, template=template).prompt(task, side.document) is None
  own = types.SimpleNamespace(prompts={
      'query': 'q: ', 'Retrieval': 'r: ', 'SciFact-query': 's: '})
  assert MtebModel(own).prompt(task, side.query) == 's: '
  assert MtebModel(own).prompt(task, side.document) == 'r: '
  del own.prompts['SciFact-query'], own.prompts['Retrieval']
  assert MtebModel(own, template=template).prompt(task, side.query) is None


def test_sides_have_the_embedders_prompts(mteb, embedder):
  model = Embedder(dataclasses.replace(
      embedder.bundle, prompts={'query': 'q: ', 'any': 'a: '},
      default_prompt_name='any'))
  side, task = mteb.types.PromptType, mteb.get_task('SciFact').metadata
  for kind, call in ((side.query, model.encode_query), (None, model.encode),
                     (side.document, model.encode_document)):
    got = MtebModel(model).encode([{'text': ['a cat']}], task_metadata=task,
                                  hf_split='test', hf_subset='x', prompt_type=kind)
    np.testing.assert_array_equal(got, call(['a cat']))


@pytest.mark.thorough
def test_every_model_and_setting_is_a_revision_of_its_own(embedder):
  def changed(**fields):
    return Embedder(dataclasses.replace(embedder.bundle, **fields))

  one_weight = jax.tree.map(lambda x: x, embedder.params)
  table = one_weight['backbone']['embed']['token']
  one_weight['backbone']['embed']['token'] = table.at[5, 5].add(1e-3)
  models = [
      MtebModel(embedder), MtebModel(embedder, template='{instruction} '),
      MtebModel(changed(params=one_weight)), MtebModel(changed(truncate_dim=8)),
      MtebModel(changed(prompts={'query': 'q: '})),
      MtebModel(changed(similarity_fn_name='dot')),
      MtebModel(changed(cfg=dataclasses.replace(embedder.cfg, max_length=99)))]
  assert len({m.mteb_model_meta.revision for m in models}) == len(models)
  assert MtebModel(changed()).revision == models[0].revision
  assert MtebModel(embedder, 'a/b', 'c').mteb_model_meta.revision == 'c'
  with pytest.raises(ValueError, match='organization/model'):
    MtebModel(embedder, 'b')


@pytest.mark.slow
def test_every_mock_task_runs(mteb, embedder):
  results = mteb.mock_run(MtebModel(embedder))
  outcome = {name: type(result).__name__ for name, result in results.items()}
  assert [name for name, kind in outcome.items() if kind == 'TaskError'] == []
  assert list(outcome.values()).count('TaskResult') > 10
