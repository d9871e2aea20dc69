"""The experiment on negatives and teachers: what is held out, arms, intervals."""

import numpy as np
import pytest

from configs import negatives_cpu
from jaxembed import config, data
from launch import negatives_folder, negatives_rows, negatives_tasks
from tests.helpers import launcher


@pytest.mark.thorough
def test_nothing_held_out_is_trained_on(shared_data):
  cfg = negatives_cpu.get_config(str(shared_data))
  found = negatives_tasks.split(cfg, shared_data / 'retrieval/scifact', False)
  squad, scifact = found.tasks['SQuAD'], found.tasks['SciFact']
  trained = {p for _, p in found.train['squad_question_sentence']}
  assert len(squad.queries) == 1000 and len(found.tasks) == 2
  answers = {squad.corpus[d] for gains in squad.qrels.values() for d in gains}
  assert not answers & trained and trained & set(squad.corpus.values())
  claims = {q for q, _ in found.train['scifact_claim_abstract']}
  assert len(scifact.queries) == 300 and not claims & set(scifact.queries.values())
  assert {d for gains in scifact.qrels.values() for d in gains} <= set(scifact.corpus)


@pytest.mark.parametrize('kind', ['random', 'bm25'])
def test_rows_of_an_arm_have_negatives_that_are_no_answers(tmp_path, kind):
  pairs = [(f'what is {i}', f'{i} is the number {i} of all') for i in range(20)]
  source = negatives_rows.rows(kind, 'a', pairs, tmp_path, None)
  assert source == negatives_rows.rows(kind, 'a', pairs, tmp_path, None)
  found = data.sources.load(source)
  for i in range(20):
    assert len(found[i].negatives) >= negatives_rows.NEGATIVES
    assert pairs[i][1] not in {p.text for p in found[i].negatives}
  assert isinstance(source, config.SourceConfig)


def test_an_interval_is_of_the_mean_over_queries():
  values = np.random.default_rng(1).normal(50, 10, 400)
  mean, low, high = (float(x) for x in negatives_tasks.interval(values).replace(
      ',', '').replace('[', '').replace(']', '').split())
  assert abs(mean - values.mean()) < 0.01
  # Of a mean of 400: 1.96 x 10 / 20 to each side.
  np.testing.assert_allclose((mean - low, high - mean), 0.98, rtol=0.15)


def test_a_folder_keeps_the_scores_of_one_experiment(tmp_path):
  made = {'config': config.to_dict(negatives_cpu.get_config('x')), 'layers': 2}
  for _ in range(2):
    negatives_folder.same_experiment(tmp_path / 'runs', made)
  with pytest.raises(ValueError, match=r'runs of another .*layers\).* --workdir'):
    negatives_folder.same_experiment(tmp_path / 'runs', made | {'layers': 3})


@pytest.mark.slow
def test_the_experiment_runs_and_repeats_nothing(shared_data, tmp_path):
  table, again = launcher.small_experiment_twice('negatives', shared_data, tmp_path)
  assert table.count('\n') >= 8 and table == again.split('\n\n')[-1]
  assert again.count('nothing to train') == 5
