"""A model carries the prompts it was trained with, wherever it goes."""

import dataclasses

import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.bundle import Bundle
from jaxembed.convert import exporters
from jaxembed.data import prompts
from jaxembed.embedder import Embedder
from jaxembed.evaluation import held_out
from jaxembed.models import presets
from jaxembed.train import loop, start
from tests.helpers import tiny_run

ASK = 'Instruct: answer the question\nQuery: '
TASK = 'Instruct: {instruction}\nQuery: '


def _stage(*sources, name='s'):
  made = [config.SourceConfig(name=n, path='x', **kw) for n, kw in sources]
  return config.StageConfig(name=name, data=config.DataConfig(sources=made))


@pytest.mark.parametrize('stages, carried', [
    ([_stage(('a', {}))], {}),
    ([_stage(('a', {'query_prompt': ASK}))], {'query': ASK, 'document': ''}),
    ([_stage(('a', {'query_prompt': 'q: ', 'passage_prompt': 'p: '}),
             ('b', {'query_prompt': 'q: ', 'passage_prompt': 'p: '}))],
     {'query': 'q: ', 'document': 'p: '}),
    ([_stage(('a', {'query_prompt': 'q: '}), ('b', {}))],
     {'a_query': 'q: ', 'a_document': '', 'b_query': '', 'b_document': ''}),
    ([_stage(('a', {'query_prompt': TASK, 'instructions': ('sort', 'sift')}))],
     {'query': 'Instruct: sort\nQuery: ', 'document': ''}),
    ([_stage(('a', {'query_prompt': TASK}))], {}),
    ([_stage(('a', {'query_prompt': TASK, 'passage_prompt': 'p: '}))],
     {'document': 'p: '}),
    # Stages agree like sources do; of one source the last stage counts.
    ([_stage(('a', {'query_prompt': 'q: '})), _stage(('b', {'query_prompt': 'q: '}))],
     {'query': 'q: ', 'document': ''}),
    ([_stage(('a', {'query_prompt': 'old: '})), _stage(('a', {'query_prompt': 'q: '}))],
     {'query': 'q: ', 'document': ''}),
])
def test_which_prompts_a_run_gives(stages, carried):
  assert prompts.trained(stages) == carried


def _carried(own, *sources):
  model, told = Bundle(params={}, cfg=presets.get('tiny_bert'), prompts=own), []
  found = start.with_prompts(model, [_stage(*sources)], told.append)
  return dict(found.prompts), ' '.join(told)


def test_a_sources_own_prompts_stay_unless_training_has_others():
  own = {'query': 'mine: ', 'clustering': 'sort: '}
  found, told = _carried(own, ('a', {}))
  assert found == own and 'training puts none' in told
  found, told = _carried(own, ('a', {'query_prompt': ASK}))
  assert found == {**own, 'query': ASK, 'document': ''} and 'carries' in told
  found, told = _carried({}, ('a', {'query_prompt': 'q: '}), ('b', {}))
  assert 'query' not in found and 'encode_document use none' in told
  found, told = _carried({}, ('a', {'query_prompt': TASK}))
  assert not found and 'every row of a' in told


@pytest.fixture(scope='module')
def prompted(tmp_path_factory, minilm) -> config.Config:
  """README's example, small: one source, whose queries have an instruction."""
  cfg = tiny_run.in_folder(tmp_path_factory.mktemp('prompted'), minilm, steps=2)
  cfg.model.max_length = 32
  source = cfg.stages[0].data.sources[0]
  source.query_prompt = ASK
  cfg.stages[0].data.query_lengths = (32,)
  cfg.eval = config.EvalConfig(source=dataclasses.replace(source, query_prompt=''))
  return cfg


@pytest.mark.thorough
def test_the_export_asks_with_the_prompt_it_was_trained_with(prompted, tmp_path):
  st = pytest.importorskip('sentence_transformers')
  run = tmp_path / 'run'
  loop.train(prompted, run, log=lambda _: None)
  ours = Embedder.load(run)
  assert ours.prompts == {'query': ASK, 'document': ''}
  exporters.export(bundle.open(run), tmp_path / 'out')
  theirs = st.SentenceTransformer(str(tmp_path / 'out'), device='cpu')
  texts = ['what is number 3', 'a']
  asked = theirs.encode_query(texts)
  np.testing.assert_allclose(ours.encode_query(texts), asked, atol=1e-5)
  np.testing.assert_allclose(
      ours.encode_document(texts), theirs.encode_document(texts), atol=1e-5)
  np.testing.assert_allclose(
      theirs.encode([ASK + text for text in texts]), asked, atol=1e-5)
  assert repr(ASK) in (tmp_path / 'out' / 'README.md').read_text()


def test_held_out_queries_are_asked_as_in_training(prompted):
  cfg, model = prompted, Embedder.load(prompted.model.source)
  scores = [held_out.scorer(ev, stages)(model.params, model.cfg, model.tokenizer, None)
            for ev, stages in (
                (cfg.eval, cfg.stages),
                (config.EvalConfig(source=cfg.stages[0].data.sources[0]), ()),
                (cfg.eval, ()))]
  assert scores[0] == scores[1] != scores[2]
