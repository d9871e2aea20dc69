"""A mining run: the right negatives, whatever is killed, and nothing done twice."""

import json

import numpy as np
import pytest

from jaxembed.config import SourceConfig
from jaxembed.data import sources
from jaxembed.mining import candidates, collection, inputs, miner, pairs, select
from jaxembed.mining.rules import Rules
from tests.helpers.fake_embedder import Fake, random_vector

OPEN = Rules(share=None, near_positive=None, num_negatives=4)


@pytest.fixture
def rows(tmp_path):
  """30 rows, of which query 3 comes twice with other positives."""
  file = tmp_path / 'rows.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in [
      *({'query': f'query {i}', 'pos': [f'answer {i}'], 'query_id': f'q{i}',
         'prompt': 'find it'} for i in range(30)),
      {'query': 'query 3', 'pos': ['another answer 3'], 'neg': ['its own negative']}]))
  return SourceConfig(name='rows', path=str(file))


@pytest.fixture
def corpus(tmp_path):
  file = tmp_path / 'corpus.jsonl'
  file.write_text(''.join(json.dumps(
      {'_id': str(i), 'title': f'T{i}', 'text': f'doc {i}'}) + '\n' for i in range(40)))
  return file


def _mine(folder, rows, corpus, fake=None, rules=OPEN, depth=12, **settings):
  texts = inputs.collect(folder, rows, corpus)
  table = miner.mine(texts, {'fake': lambda: fake or Fake()}, depth=depth, part=7,
                     **settings)
  account = miner.write_rows(texts, table, rules, overwrite=True)
  return texts, table, account


def test_negatives_are_the_nearest_that_are_no_positives(tmp_path, rows, corpus):
  texts, _, account = _mine(tmp_path / 'run', rows, corpus)
  documents = [f'T{i} doc {i}' for i in range(40)] + [
      f'answer {i}' for i in range(30)] + ['another answer 3', 'its own negative']
  assert [texts.documents[i][0]['text'] for i in range(72)] == documents
  vectors = np.stack([random_vector(d) for d in documents])
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  found = [json.loads(line) for line in (tmp_path / 'run/mined.jsonl').open()]
  assert len(found) == 30 and account.taken == 120
  for i, row in enumerate(found):
    query = random_vector(f'query {i}')
    scores = vectors @ (query / np.linalg.norm(query))
    own = [f'answer {i}'] + ['another answer 3'] * (i == 3)
    order = [k for k in np.argsort(-scores) if documents[k] not in own][:4]
    assert row['query'] == f'query {i}' and row['pos'] == own
    assert row['query_id'] == f'q{i}' and row['instruction'] == 'find it'
    assert row['neg'] == [documents[k] for k in order]
    np.testing.assert_allclose(row['neg_scores'], scores[order], atol=1e-6)
    np.testing.assert_allclose(
        row['pos_scores'], [scores[documents.index(p)] for p in own], atol=1e-6)
  examples = sources.load(SourceConfig(
      name='mined', path=str(tmp_path / 'run/mined.jsonl')))
  assert [p.score for p in examples[3].negatives] == found[3]['neg_scores']


def test_another_rule_encodes_and_searches_nothing(tmp_path, rows, corpus, monkeypatch):
  fake = Fake()
  texts, _, _ = _mine(tmp_path / 'run', rows, corpus, fake)
  assert len(fake.encoded) == 30 + 72
  monkeypatch.setattr(candidates.search, 'top_k', None)
  _mine(tmp_path / 'run', rows, corpus, fake)
  table = candidates.Table.load(collection.load(tmp_path / 'run'))
  with pytest.raises(FileExistsError, match='made by other rules'):
    miner.write_rows(texts, table, Rules())
  miner.write_rows(texts, table, Rules(margin=0.1), tmp_path / 'other.jsonl')
  assert len(fake.encoded) == 30 + 72


@pytest.mark.parametrize('dies', range(0, 105, 7))
def test_a_kill_anywhere_leaves_the_same_bytes(tmp_path, rows, corpus, dies):
  _mine(tmp_path / 'whole', rows, corpus)
  fake = Fake(dies_after=dies)
  if dies < 102:
    with pytest.raises(KeyboardInterrupt):
      _mine(tmp_path / 'run', rows, corpus, fake)
  fake.dies_after = None
  _mine(tmp_path / 'run', rows, corpus, fake)
  assert sorted(fake.encoded) == sorted(set(fake.encoded)) and len(fake.encoded) == 102
  assert _bytes(tmp_path / 'run') == _bytes(tmp_path / 'whole')


def test_a_kill_of_the_search_continues_it(tmp_path, rows, corpus, monkeypatch):
  monkeypatch.setattr(candidates, '_QUERIES', 8)
  _mine(tmp_path / 'whole', rows, corpus)
  search, calls = candidates.search.top_k, []

  def dying(queries, *args, **kwargs):
    calls.append(len(queries))
    if len(calls) == 3:
      raise KeyboardInterrupt
    return search(queries, *args, **kwargs)

  monkeypatch.setattr(candidates.search, 'top_k', dying)
  with pytest.raises(KeyboardInterrupt):
    _mine(tmp_path / 'run', rows, corpus)
  _mine(tmp_path / 'run', rows, corpus)
  assert calls == [8, 8, 8, 8, 6]
  assert _bytes(tmp_path / 'run') == _bytes(tmp_path / 'whole')


def _bytes(folder):
  return {str(p.relative_to(folder)): p.read_bytes()
          for p in folder.rglob('*') if p.is_file()}


def test_other_inputs_and_models_are_refused(tmp_path, rows, corpus):
  _mine(tmp_path / 'run', rows, corpus)
  with pytest.raises(ValueError, match=r"other work: model was 'fake', is 'new'"):
    _mine(tmp_path / 'run', rows, corpus, Fake(name='new'))
  with pytest.raises(ValueError, match='depth was 12, is 9'):
    _mine(tmp_path / 'run', rows, corpus, depth=9)
  with pytest.raises(ValueError, match='corpus was'):
    inputs.collect(tmp_path / 'run', rows)
  with pytest.raises(FileNotFoundError, match='launch.mine --data'):
    collection.load(tmp_path / 'none')


def test_planted_false_negatives_go_and_distractors_stay(tmp_path):
  """Of every positive a copy with small edits and, further off, a hard distractor."""
  rng = np.random.default_rng(0)
  width, count = 64, 60
  vectors = {}

  def near(base, noise):
    x = base + noise * rng.normal(size=width) / np.sqrt(width)
    return x / np.linalg.norm(x)

  for i in range(count):
    topic = near(np.zeros(width), 1)
    vectors[f'question {i}'] = near(topic, 0.6)
    vectors[f'answer {i}'] = near(topic, 0.6)
    vectors[f'copy {i}'] = near(vectors[f'answer {i}'], 0.2)
    vectors[f'distractor {i}'] = near(topic, 1.0)
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(''.join(json.dumps(
      {'query': f'question {i}', 'pos': [f'answer {i}'],
       'neg': [f'copy {i}', f'distractor {i}', f'ANSWER  {i}!']}) + '\n'
      for i in range(count)))
  fake = Fake(lambda text: vectors[text.lower().replace('  ', ' ').rstrip('!')], width)
  _, _, account = _mine(tmp_path / 'run', SourceConfig(name='r', path=str(rows)), None,
                        fake, Rules(num_negatives=5), depth=20)
  found = [json.loads(line)['neg'] for line in (tmp_path / 'run/mined.jsonl').open()]
  copies = sum(f'copy {i}' in neg for i, neg in enumerate(found))
  same = sum(f'ANSWER  {i}!' in neg for i, neg in enumerate(found))
  kept = sum(f'distractor {i}' in neg for i, neg in enumerate(found))
  assert same == 0 and copies <= 0.05 * count and kept >= 0.9 * count
  assert account.rejected['same text'] == count
  assert account.rejected['near a positive'] >= 0.95 * count


def test_teachers_beside_the_one_that_searched(tmp_path, rows, corpus):
  texts = inputs.collect(tmp_path / 'run', rows, corpus)
  strong = Fake(lambda text: random_vector('!' + text, 24), 24, 'strong')
  table = miner.mine(texts, {'fake': Fake, 'strong': lambda: strong}, depth=9)
  assert list(table.scores) == ['fake', 'strong'] and table.teacher == 'fake'
  for q in (0, 3):
    query = random_vector(f'!query {q}', 24)
    for document, score in zip(table.rows[q], table.scores['strong'][q]):
      other = random_vector('!' + texts.documents[int(document)][0]['text'], 24)
      assert abs(score - query @ other / np.linalg.norm(query) / np.linalg.norm(other)
                 ) < 1e-6
  count = pairs.export(texts, table, tmp_path / 'pairs.jsonl')
  given = [json.loads(line) for line in (tmp_path / 'pairs.jsonl').open()]
  assert len(given) == count and given[0]['query'] == 'query 0'
  scored = [row | {'score': -len(row['document']) - row['query_number'] / 8}
            for row in reversed(given)]
  (tmp_path / 'scores.jsonl').write_text('\n'.join(map(json.dumps, scored[1:])))
  with pytest.raises(ValueError, match='1 pairs of the table have no score'):
    pairs.read_scores(texts, 'reranker', tmp_path / 'scores.jsonl')
  other = scored[0] | {'score': scored[0]['score'] + 1}
  (tmp_path / 'scores.jsonl').write_text('\n'.join(map(json.dumps, [*scored, other])))
  with pytest.raises(ValueError, match=rf'jsonl:{len(scored) + 1}: .* in an earlier'):
    pairs.read_scores(texts, 'reranker', tmp_path / 'scores.jsonl')
  (tmp_path / 'scores.jsonl').write_text('\n'.join(  # one of them twice, and alike
      map(json.dumps, [*scored, scored[0]])))
  pairs.read_scores(texts, 'reranker', tmp_path / 'scores.jsonl')
  table = candidates.Table.load(texts)
  rules = Rules(share=None, near_positive=None, max_score=-9, teacher='reranker')
  miner.write_rows(texts, table, rules, tmp_path / 'out.jsonl')
  for q, line in enumerate((tmp_path / 'out.jsonl').open()):
    row = json.loads(line)
    wanted = [d for d in (texts.documents[int(k)][0]['text'] for k in table.rows[q])
              if d not in row['pos'] and -len(d) - q / 8 <= -9]
    assert row['neg'] == sorted(wanted, key=len)[:7]
    assert row['neg_scores'] == [-len(d) - q / 8 for d in row['neg']]
  every = Rules(share=None, near_positive=None, max_score=-9, teacher='every')
  account = select.Account()
  list(select.select(texts, table, every, account))
  looked = table.rows.size - account.rejected['positive']
  wanted = ((table.scores['reranker'] > -9) | (table.scores['fake'] > -9)
            | (table.scores['strong'] > -9))
  assert account.rejected['max_score'] == looked == wanted.sum() - account.rejected[
      'positive']
  with pytest.raises(ValueError, match="no teacher is called 'none'"):
    list(select.select(texts, table, Rules(teacher='none'), account))


def test_the_report_counts_and_shows(tmp_path, rows, corpus):
  texts, table, _ = _mine(tmp_path / 'run', rows, corpus)
  told = []
  account = miner.write_rows(texts, table, Rules(max_score=0.2, share=None),
                             overwrite=True, say=told.append)
  assert account.rejected['max_score'] == int((np.array(
      [s for q in range(30) for d, s in zip(table.rows[q], table.scores['fake'][q])
       if d not in texts.positives_of(q)]) > np.float32(0.2)).sum())
  assert any('rejected as max_score: score 0.' in line for line in told)
  taken = [s for line in (tmp_path / 'run/mined.jsonl').open()
           for s in json.loads(line)['neg_scores']]
  np.testing.assert_allclose(account.quantiles()['negatives'], np.quantile(
      taken, select.QUANTILES), atol=1e-6)
