"""fit: a Config out of Python arguments, trained as the launcher trains it."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import jaxembed
from jaxembed import config
from jaxembed.embedder import Embedder
from jaxembed.evaluation import held_out
from jaxembed.train import arguments, fit, loop
from tests.helpers import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
ROWS = [{'anchor': f'what is number {i}', 'positive': f'{i} is {i * i % 97}',
         'negative': f'{i} is {i * i % 97 + 1}'} for i in range(40)]
QUIET = {'log': lambda _: None}
pytestmark = pytest.mark.usefixtures('compiled_once')


def _made(**told) -> config.Config:
  return arguments.experiment(arguments.Arguments(**told)).cfg


# Rows of eight to a step, short, as the other tests of runs have them.
SMALL = {'batch_size': 8, 'learning_rate': 1e-3, 'replace': {
    'stages[0].data.query_lengths': (16,), 'stages[0].data.passage_lengths': (16,),
    'stages[0].data.num_negatives': 0}}


@pytest.fixture(scope='module')
def run(tiny, tmp_path_factory) -> fit.Run:
  """A run of six steps, stopped after the second and called again."""
  folder, said = tmp_path_factory.mktemp('run'), []
  told = SMALL | dict(steps=6, workdir=folder, eval_data=ROWS[:12], log=said.append,
                      prompts={'query': 'ask: ', 'document': 'answer: '})
  count = iter([False, True])
  fit.fit(tiny, ROWS, **told, should_stop=lambda: next(count))
  assert 'stopped    after step 2' in said[-1]
  return fit.fit(tiny, ROWS, **told)


@pytest.mark.thorough
def test_a_run_that_was_stopped_goes_on_to_the_bits_of_a_whole_one(run, tmp_path):
  """Which loop.train makes of the Config alone."""
  cfg = run.config
  loop.train(cfg, tmp_path, rows={'data': ROWS}, evaluate=held_out.scorer(
      cfg.eval, cfg.stages, {'eval_data': ROWS[:12]}), **QUIET)
  assert tiny_run.bits(run.workdir) == tiny_run.bits(tmp_path)


def test_a_config_is_trained_as_it_stands(run, tiny, tmp_path):
  cfg = tiny_run.experiment(tiny, tmp_path / 'rows.jsonl')
  cfg.stages = [*cfg.stages, *cfg.stages]
  for given in (run.config, cfg):
    found = arguments.experiment(arguments.Arguments(config=given)).cfg
    assert found is not given and found == given
  again = arguments.experiment(arguments.Arguments(
      config=run.config, data=ROWS, eval_data=ROWS[:12]))
  assert again.cfg == run.config  # its rules for the rows of these names included
  assert again.rows == {'data': ROWS}


_BOTH = """
import sys, json
from absl import flags
import jaxembed
from jaxembed import config
from launch import train
flags.FLAGS(['train', '--config=' + sys.argv[1], '--workdir=' + sys.argv[2]])
train.main()
cfg = config.from_dict(config.Config, json.load(open(sys.argv[3])))
jaxembed.fit(cfg, workdir=sys.argv[4])
"""


@pytest.mark.thorough
def test_the_launcher_trains_the_same_bits(tiny, tmp_path):
  cfg = tiny_run.experiment(tiny, tiny_run.write_rows(tmp_path / 'rows.jsonl'), steps=3)
  cfg.eval.source = cfg.stages[0].data.sources[0]
  stored = json.dumps(config.to_dict(cfg))
  (tmp_path / 'cfg.json').write_text(stored)
  (tmp_path / 'experiment.py').write_text(
      'import json\nfrom jaxembed import config\n\n\ndef get_config():\n  return '
      f'config.from_dict(config.Config, json.loads({stored!r}))\n')
  done = subprocess.run(
      [sys.executable, '-c', _BOTH, tmp_path / 'experiment.py', tmp_path / 'launcher',
       tmp_path / 'cfg.json', tmp_path / 'fit'], cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': os.environ['TESTS_XLA_FLAGS']},
      capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  assert tiny_run.bits(tmp_path / 'fit') == tiny_run.bits(tmp_path / 'launcher')
  kept = [json.loads((tmp_path / name / 'config.json').read_text())
          for name in ('fit', 'launcher')]
  assert kept[0] == kept[1]


def test_the_result_is_a_model_with_its_scores_and_curves(run, tmp_path):
  assert run.model.prompts == {'query': 'ask: ', 'document': 'answer: '}
  assert [r['step'] for r in run.metrics if 'train/loss' in r] == [1, 2, 3, 4, 5, 6]
  assert run.report()._repr_png_().startswith(b'\x89PNG')
  scores = jaxembed.evaluate(run.model, ROWS[:12])
  for name in ('ndcg@10', 'recall@1', 'mrr@10'):
    np.testing.assert_allclose(run.scores[f'eval/{name}'], scores[name], atol=1e-6)
  assert jaxembed.evaluate(run.workdir, ROWS[:12]) == scores


def test_arguments_are_fields_of_a_config(tiny):
  own = config.LossConfig(name='info_nce', symmetric=True)
  cfg = _made(model=tiny, data=ROWS, steps=7, batch_size=16, learning_rate=1e-3,
              loss=own, temperature=0.1, lora=4, pooling='cls', max_length=40, seed=5,
              prompts={'query': 'q: '}, replace={'mesh.fsdp': 2, 'log_every': 3})
  stage, source = cfg.stages[0], cfg.stages[0].data.sources[0]
  assert (stage.steps, stage.data.batch_size, stage.optim.peak_lr) == (7, 16, 1e-3)
  assert (stage.loss.symmetric, stage.loss.temperature) == (True, 0.1)
  assert own.temperature == 0.05  # what the caller holds stays as it was
  assert (cfg.model.source, cfg.model.lora_rank, cfg.model.pooling,
          cfg.model.max_length, cfg.seed) == (str(tiny), 4, 'cls', 40, 5)
  assert (source.kind, source.query_prompt, source.passage_prompt) == (
      'memory', 'q: ', '')
  assert (cfg.mesh.fsdp, cfg.log_every) == (2, 3)
  assert stage.data.query_lengths == (32, 40)


def test_what_is_not_named_follows_from_rows_and_model(tiny):
  stage = _made(model=tiny, data=ROWS, epochs=3).stages[0]
  assert (stage.data.batch_size, stage.data.num_negatives, stage.steps) == (40, 1, 3)
  assert stage.data.passage_lengths == (32, 64)  # the model has 64 positions
  assert _made(model=tiny, data=ROWS, batch_size=16).stages[0].steps == 2
  two = _made(model=tiny, data={'a': ROWS, 'b': ROWS[:20]}).stages[0].data.sources
  assert [(s.name, s.weight) for s in two] == [('a', 40), ('b', 20)]


def test_an_embedder_is_trained_from_where_it_was_loaded(tiny):
  model = Embedder.load(tiny, dtype='bfloat16')
  model.max_seq_length = 48
  spec = _made(model=model, data=ROWS).model
  assert (spec.source, spec.dtype, spec.max_length) == (str(tiny), 'bfloat16', 48)

  def refused(message, change):
    changed = Embedder(model.bundle)
    change(changed)
    with pytest.raises(ValueError, match=message):
      _made(model=changed, data=ROWS)

  refused('parameters are not those .* save it', lambda m: setattr(
      m, 'params', dict(m.params)))
  refused("another prompts than .* give fit\\(\\) prompts=", lambda m: setattr(
      m, 'prompts', {'query': 'q: '}))
  refused('another truncate_dim', lambda m: setattr(m, 'truncate_dim', 8))
  refused("cfg is not the one of", lambda m: setattr(
      m, 'cfg', dataclasses.replace(m.cfg, pooling=config.PoolingConfig(kind='cls'))))


@pytest.mark.parametrize(('told', 'message'), [
    ({'lr': 1}, "no argument 'lr'; did you mean 'learning_rate'"),
    ({'learning_rat': 1}, "no argument 'learning_rat'; did you mean 'learning_rate'"),
    ({'num_train_epochs': 1}, "did you mean 'epochs'"),
    ({'weight_decay': 1}, r"replace=\{'stages\[0\].optim.weight_decay': ...\}"),
    ({'replace': {'stages[0].optim.lr': 1}}, 'optim.lr is no field of OptimConfig'),
    ({'steps': 1, 'epochs': 1}, 'both given'),
    ({'epochs': 0}, 'epochs is 0; give'),
    ({'loss': 3}, 'loss is 3; give the name of a loss .info_nce'),
    ({'lora': True}, 'lora is True; give the rank'),
    ({'pooling': 'avg'}, "kind is 'avg'; choose one of cls"),
    ({'prompts': {'queries': 'q'}}, 'prompts is .* give'),
    ({'model': None}, 'needs a model: a hub id'),
    ({'model': 3}, 'model is int; give a hub id'),
    ({'model': './nowhere'}, 'nowhere is no folder here'),
    ({'data': None}, 'needs data'),
    ({'data': []}, 'data has no rows; a row is'),
    ({'data': 'rows.docx'}, "'rows.docx', whose kind its name does not tell"),
    ({'data': 'nowhere.jsonl'}, "'nowhere.jsonl' names no file"),
    ({'data': ['a text']}, "data.0. is the text 'a text'; a row is"),
    ({'data': iter(ROWS)}, 'list_iterator, which has no rows with numbers; give a '),
    ({'data': {'train': ROWS, 'test': ROWS}}, "give one of them, such as data.'trai"),
    ({'data': [{'q': 'a', 'a': 'b'}]}, r"data\[0\]: no query; .* columns="),
    ({'eval_data': {'a': ROWS, 'b': ROWS}}, 'eval_data names 2 sets; give one'),
])
def test_what_means_nothing_is_refused_in_a_sentence(tiny, told, message, tmp_path):
  with pytest.raises((TypeError, ValueError, OSError), match=message) as error:
    fit.fit(**({'model': tiny, 'data': ROWS, 'workdir': tmp_path / 'run'} | told))
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_what_is_about_one_stage_is_not_spread_over_two(tiny, tmp_path):
  cfg = tiny_run.experiment(tiny, tmp_path / 'rows.jsonl')
  cfg.stages = [*cfg.stages, *cfg.stages]
  with pytest.raises(ValueError, match='steps is about one stage, .* has 2'):
    fit.fit(cfg, steps=3)


def test_columns_of_other_names_and_fields_of_a_source(tiny):
  rows = [{'q': 'a', 'a': 'b', 'page': 5}]
  cfg = _made(model=tiny, data=rows, columns=('q', 'a'))
  assert cfg.stages[0].data.sources[0].columns == ('q', 'a')
  rows = [{'query': 'a', 'positive': 'b', 'score': x} for x in (0.5, 0.1)]
  source = _made(model=tiny, data=rows, replace={
      'stages[0].data.sources[0].min_score': 0.3}).stages[0].data.sources[0]
  assert source.min_score == 0.3


@pytest.mark.thorough
def test_the_way_of_the_documentation(tiny, tmp_path, monkeypatch):
  """The lines of docs/python.md, with a small model."""
  blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/python.md').read_text(),
                      re.DOTALL)
  assert blocks[0].count('\n') <= 20
  monkeypatch.chdir(tmp_path)
  space: dict = {}
  code = blocks[0].replace('sentence-transformers/all-MiniLM-L6-v2', str(tiny))
  exec(code.replace('epochs=2', 'epochs=2, max_length=24'), space)
  assert space['run'].scores['eval/ndcg@10'] > 0
  assert len(space['vectors']) == 200 and space['found'].shape == (1, 3)
  assert (tmp_path / 'runs/exported/parity.json').exists()
