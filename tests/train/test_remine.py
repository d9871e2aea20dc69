"""Negatives of a run that mines anew are those of its weights of that step."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from jaxembed import bundle, config, sharding
from jaxembed.config import SourceConfig
from jaxembed.embedder import Embedder
from jaxembed.files import mirror, url
from jaxembed.mining import candidates, collection, inputs, miner
from jaxembed.mining.rules import Rules
from jaxembed.train import loop, remine
from jaxembed.train.stages import stages
from tests.helpers import memory_buckets, tiny_run

RULES = Rules(share=None, near_positive=None, num_negatives=2)


@pytest.fixture(scope='module')
def experiment(minilm, tmp_path_factory):
  """A run of 6 steps that mines after 2 and after 4; its first negatives are mined."""
  folder = tmp_path_factory.mktemp('experiment')
  cfg = tiny_run.in_folder(folder, minilm)
  texts = inputs.collect(folder / 'run', SourceConfig(
      name='rows', path=str(folder / 'rows.jsonl')))
  table = miner.mine(texts, {'tiny': lambda: Embedder(bundle.open(folder / 'model'))},
                     depth=12)
  miner.write_rows(texts, table, RULES)
  (stage,) = cfg.stages
  source = SourceConfig(name='rows', rows='mined', path=str(folder / 'run'))
  every = dataclasses.replace(cfg.checkpoint, keep=9)
  return dataclasses.replace(cfg, checkpoint=every, stages=[dataclasses.replace(
      stage, remine_every=2, data=dataclasses.replace(
          stage.data, sources=[source], num_negatives=2))])


@pytest.mark.thorough
def test_rows_are_those_of_full_mining_and_resuming_makes_the_same(
    experiment, tmp_path):
  told = []
  with tiny_run.shared_updates():
    loop.train(experiment, tmp_path / 'whole', log=told.append)
    stop = iter([False, False, True])
    loop.train(experiment, tmp_path / 'parts', log=lambda _: None,
               should_stop=lambda: next(stop))  # in the middle of a span
    loop.train(experiment, tmp_path / 'parts', log=lambda _: None)
  assert sum(line.startswith('mined') for line in told) == 2
  for a, b in zip(*(jax.tree.leaves(tiny_run.parameters(tmp_path / name))
                    for name in ('whole', 'parts'))):
    np.testing.assert_array_equal(a, b)
  base = collection.load(experiment.stages[0].data.sources[0].path)
  for step in (2, 4):
    embedder = Embedder.load(tmp_path / 'whole', step=step)
    here = dataclasses.replace(base, folder=tmp_path / f'full-{step}')
    stores = miner.encode_into(base, embedder, here.folder / 'vectors')
    candidates.find(here, 'full', *stores, 12, embedder.similarity_fn_name)
    miner.write_rows(here, candidates.Table.load(here), RULES)
    of_run = tmp_path / f'whole/mined/rows/step-{step}'
    full, own = ([json.loads(line) for line in (folder / 'mined.jsonl').open()]
                 for folder in (here.folder, of_run))
    for a, b in zip(full, own, strict=True):
      assert (a['query'], a['pos']) == (b['query'], b['pos'])
      np.testing.assert_allclose(a['neg_scores'], b['neg_scores'], atol=1e-5)
  first = (base.folder / 'mined.jsonl').read_text()
  assert first != (tmp_path / 'whole/mined/rows/step-4/mined.jsonl').read_text()

  # Rows in memory stand beside them, as they did before.
  (stage,) = stages(experiment)
  both = dataclasses.replace(stage.cfg, data=dataclasses.replace(
      stage.cfg.data, sources=[*stage.cfg.data.sources,
                               SourceConfig(name='own', kind='memory', path='')]))
  mixture = remine.mixture(
      dataclasses.replace(stage, cfg=both), 4, tmp_path / 'whole', embedder.params,
      embedder.tokenizer, sharding.make_mesh((1, 1, 1), jax.devices()[:1]), told.append,
      {'own': [{'query': 'a query', 'pos': ['its answer']}]})
  assert mixture.fingerprints['own']['rows'] == 1


@pytest.mark.thorough
@pytest.mark.parametrize('done, wanted', [
    (0, [(0, 0, 4), (4, 4, 8), (8, 8, 10)]), (5, [(4, 5, 8), (8, 8, 10)]),
    (8, [(8, 8, 10)]), (10, [])])
def test_spans(experiment, done, wanted):
  stage = stages(dataclasses.replace(experiment, stages=[dataclasses.replace(
      experiment.stages[0], steps=10, remine_every=4)]))[0]
  assert list(remine.spans(stage, done)) == wanted


def test_what_cannot_be_mined_anew_is_refused_before_a_run(
    experiment, tmp_path, monkeypatch):
  (stage,) = experiment.stages
  path = pathlib.Path(stage.data.sources[0].path)
  shutil.copytree(path, tmp_path / 'other')
  texts = collection.load(tmp_path / 'other')
  table = candidates.Table.load(texts)
  miner.write_rows(texts, table, dataclasses.replace(RULES, teacher='every'),
                   overwrite=True)
  other = dataclasses.replace(stage, data=dataclasses.replace(stage.data, sources=[
      SourceConfig(name='rows', rows='mined', path=str(tmp_path / 'other'))]))
  with pytest.raises(ValueError, match="'rows': .* scores of 'every'.*remine_every"):
    loop.train(dataclasses.replace(experiment, stages=[other]), tmp_path / 'run')
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='remine_every works in one process, .* are 2'):
    remine.check([stage])


def test_a_mining_run_at_a_url_may_be_mined_anew(experiment, tmp_path):
  pytest.importorskip('obstore')
  (stage,) = experiment.stages
  (source,) = stage.data.sources
  at_url = dataclasses.replace(stage, data=dataclasses.replace(
      stage.data, sources=[dataclasses.replace(source, path='s3://b/mined')]))
  with memory_buckets.opened(tmp_path / 'home'):
    mirror.Mirror(url.Objects('s3://b/mined'), pathlib.Path(source.path)).push()
    remine.check([at_url])


def test_an_infinite_margin_encodes_everything_again(experiment, tmp_path):
  told, (stage,) = [], stages(experiment)
  embedder = Embedder(bundle.open(pathlib.Path(
      experiment.stages[0].data.sources[0].path).parent / 'model'))
  whole = dataclasses.replace(stage, cfg=dataclasses.replace(
      stage.cfg, remine_margin=float('inf')))
  base = pathlib.Path(experiment.stages[0].data.sources[0].path)
  for step in (2, 4):
    remine._mine(base, tmp_path / f'mined/rows/step-{step}', whole, embedder,
                 told.append)
  assert all('all ' in line and 'documents encoded;' in line for line in told)
  remine._mine(base, tmp_path / 'mined/rows/step-6', stage, embedder, told.append)
  assert 'documents encoded' in told[-1] and ': all ' not in told[-1]


def test_nothing_to_mine_anew_is_refused():
  with pytest.raises(ValueError, match="no source is of kind 'mined'"):
    config.StageConfig(remine_every=5)
