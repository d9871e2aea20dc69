"""Mined negatives of all-MiniLM are those of sentence_transformers'
mine_hard_negatives under the same rule."""

import json

import pytest

from jaxembed.config import SourceConfig
from jaxembed.data import sources
from jaxembed.mining import inputs, miner
from jaxembed.mining.rules import Rules

ROWS, DEPTH = 40, 30
ROUNDING = 1e-6  # of scores, of two libraries in float32


@pytest.fixture(scope='module')
def texts():
  """Docstrings and their functions; every tenth query has two answers."""
  found = sources.load(SourceConfig(name='python', kind='installed_code', split='test',
                                    limit=ROWS + 20))
  pairs = [(found[i].query, found[i].positives[0].text[:120]) for i in range(ROWS)]
  pairs += [(pairs[i][0], found[ROWS + i // 10].query) for i in range(0, ROWS, 10)]
  return pairs, [found[i].positives[0].text[:120] for i in range(ROWS, ROWS + 20)]


@pytest.fixture(scope='module')
def mined(texts, embedder, tmp_path_factory):
  """The run and its table; DEPTH candidates, as the peer looks at."""
  folder = tmp_path_factory.mktemp('mined')
  pairs, corpus = texts
  (folder / 'rows.jsonl').write_text(''.join(
      json.dumps({'query': q, 'positive': p}) + '\n' for q, p in pairs))
  (folder / 'corpus.jsonl').write_text(''.join(
      json.dumps({'text': text}) + '\n' for text in corpus))
  found = inputs.collect(folder / 'run', SourceConfig(
      name='rows', path=str(folder / 'rows.jsonl')), folder / 'corpus.jsonl')
  return found, miner.mine(found, {'minilm': lambda: embedder}, depth=DEPTH)


@pytest.mark.thorough
@pytest.mark.parametrize('peer, ours', [
    ({'relative_margin': 0.05}, {}),
    pytest.param({'absolute_margin': 0.1, 'max_score': 0.6}, {
        'share': None, 'margin': 0.1, 'max_score': 0.6}, marks=pytest.mark.thorough),
    pytest.param({'min_score': 0.1, 'range_min': 5}, {
        'share': None, 'min_score': 0.1, 'skip': 5}, marks=pytest.mark.thorough),
], ids=['share', 'margin', 'window'])
def test_the_same_negatives(texts, mined, torch_model, tmp_path, peer, ours):
  datasets = pytest.importorskip('datasets')
  from sentence_transformers import util
  pairs, corpus = texts
  given = datasets.Dataset.from_dict({
      'query': [q for q, _ in pairs], 'positive': [p for _, p in pairs]})
  wanted = util.mine_hard_negatives(
      given, torch_model, corpus=corpus, num_negatives=4, output_format='labeled-list',
      range_max=DEPTH - 2, output_scores=True, verbose=False, **peer)
  found, table = mined
  rules = Rules(num_negatives=4, near_positive=None, same_text=False, **ours)
  miner.write_rows(found, table, rules, tmp_path / 'out.jsonl')
  rows = [json.loads(line) for line in (tmp_path / 'out.jsonl').open()]
  by_pair = {(row['query'], row['positive'][0]): row for row in wanted}
  compared = tied = 0
  for row in rows:
    for positive, score in zip(row['pos'], row['pos_scores']):
      other = by_pair.pop((row['query'], positive), None)
      assert (other is None) == (not row['neg'])  # a row without negatives is left out
      if other:
        assert [score, *row['neg_scores']] == pytest.approx(
            other['scores'], abs=ROUNDING)
        compared += len(row['neg'])
        tied += sum(a != b for a, b in zip(row['neg'], other['positive'][1:]))
  # Scores agree place by place; two that differ less than the two libraries' float32
  # can change places.
  assert not by_pair and compared > 90 and tied <= 0.01 * compared
