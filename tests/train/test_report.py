"""The report of a run, parsed as a browser would."""

import html.parser
import json
import math

import numpy as np
import pytest

from jaxembed import config
from jaxembed.evaluation import metrics as retrieval_metrics
from jaxembed.train import curves, metrics, report
from tests.helpers import launcher

NAME = 'a <b>name</b> & more'


class _Page(html.parser.HTMLParser):
  """Tables as rows of cells, pictures, and whatever would be loaded from elsewhere."""

  def __init__(self, text: str):
    super().__init__()
    self.rows, self.open, self.loads, self.tags = [], [], [], []
    self._cell = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.loads += [v for k, v in attrs if k in ('src', 'href', 'xlink:href')
                   and not v.startswith('#')]
    if tag not in ('meta', 'path', 'use', 'rect', 'image', 'br'):
      self.open.append(tag)
    if tag == 'tr':
      self.rows.append([])
    self._cell = '' if tag in ('td', 'th') else self._cell

  def handle_endtag(self, tag):
    if tag in ('path', 'use', 'rect', 'image'):
      return
    assert self.open.pop() == tag
    if tag in ('td', 'th'):
      self.rows[-1].append(self._cell)
      self._cell = None

  def handle_data(self, data):
    if self._cell is not None:
      self._cell += data


@pytest.fixture
def run(tmp_path):
  cfg = config.Config(name=NAME, seed=7, model=config.ModelSpec(source='m'), stages=[
      config.StageConfig(steps=4, data=config.DataConfig(sources=[
          config.SourceConfig(name='pairs', path='p.jsonl')]))])
  versions = {'jax': '0.10.2'}
  (tmp_path / 'manifest.json').write_text(json.dumps({
      'config': config.to_dict(cfg),
      'data': {'stages[0]/pairs': {'rows': 40, 'sha256': 'ab' * 32}},
      'starts': [{'step': step, 'versions': versions, 'git': None, 'processes': 1,
                  'mesh': {'data': 1}, 'devices': '1 x cpu', 'changes': ['seed was 1']}
                 for step in (0, 2)]}))
  writer = metrics.Writer(tmp_path)
  writer.write(0, {'eval/ndcg@10': 0.5, 'ci95/ndcg@10': 0.1, 'eval/mine': 0.25})
  for step in range(1, 5):
    writer.write(step, {'train/loss': math.nan if step == 2 else 1 / step})
  writer.write(4, {'eval/ndcg@10': 0.75, 'ci95/ndcg@10': 0.125, 'eval/mine': 0.2})
  writer.close()
  return tmp_path


def test_the_page_is_whole_and_stands_alone(run):
  ended = launcher.run('report', f'--workdir={run}')
  assert ended.out.strip() == str(run / 'report.html') and not ended.err
  text = (run / 'report.html').read_text()
  page = _Page(text)
  assert not page.open and not page.loads and page.tags.count('svg') == 4
  assert 'script' not in page.tags and 'b' not in page.tags
  assert ['ndcg@10', '0.5000 ± 0.1000', '0.7500 ± 0.1250', '+0.2500',
          '0.7500 (step 4)'] in page.rows
  assert ['mine', '0.2500', '0.2000', '-0.0500', '0.2500 (step 0)'] in page.rows
  assert ['train', 'pairs', '40', 'jsonl', 'p.jsonl', 'ab' * 8] in page.rows
  assert ['seed', '7'] in page.rows and ['jax', '0.10.2'] in page.rows
  # Once among all fields alone: what is as usual is not among what was chosen.
  assert page.rows.count(['log_every', '10']) == 1
  assert page.rows.count(['seed', '7']) == 2
  assert (run / 'report.png').read_bytes().startswith(b'\x89PNG')
  assert len(set(_ids(text))) == len(_ids(text))


def _ids(text: str) -> list[str]:
  return [part.split('"')[0] for part in text.split(' id="')[1:]]


def test_no_run_is_told(tmp_path):
  ended = launcher.run('report', f'--workdir={tmp_path}')
  assert 'is no run' in ended.error and ended.code == 1


def test_a_run_without_records_has_a_report(run):
  (run / 'metrics.jsonl').write_text('')
  assert 'No evaluation' in report.write(run).read_text()


def test_smoothing_keeps_a_line_and_takes_noise_away():
  line = np.linspace(3, 1, 200)
  inner = slice(40, -40)  # the ends have neighbours on one side
  np.testing.assert_allclose(curves.smooth(line)[inner], line[inner], atol=1e-6)
  noise = np.random.default_rng(0).normal(size=200)
  assert np.std(curves.smooth(line + noise) - line) < 0.4 * np.std(noise)


def test_an_interval_holds_the_mean_of_the_population_as_often_as_it_says():
  rng = np.random.default_rng(1)
  held = [abs(np.mean(x) - 0.5) <= retrieval_metrics.half_interval(x)
          for x in rng.uniform(size=(2000, 60))]
  assert 0.93 < np.mean(held) < 0.97


def test_scores_per_query_average_to_the_scores():
  qrels = {'a': {'x': 1}, 'b': {'y': 1, 'z': 1}}
  found = {'a': {'x': .1, 'y': .9}, 'b': {'y': .5, 'x': .4, 'z': .3}}
  each = retrieval_metrics.per_query(qrels, found, (1, 2))
  assert each['recall@2'].tolist() == [1.0, 0.5] and each['mrr@2'].tolist() == [0.5, 1]
  whole = retrieval_metrics.retrieval(qrels, found, (1, 2))
  assert whole == {name: pytest.approx(np.mean(v)) for name, v in each.items()}
