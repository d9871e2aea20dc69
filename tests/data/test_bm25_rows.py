"""Rows with BM25 negatives, and negatives that match less than the positive."""

import json
import math
import re

import numpy as np
import pytest

from jaxembed import data
from jaxembed.config import SourceConfig
from jaxembed.data import bm25

WORDS = ('cat', 'dog', 'mat', 'rug', 'sat', 'lay', 'old', 'red', 'big', 'far')


def _pairs(n, seed=0):
  rng = np.random.default_rng(seed)
  texts = [' '.join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(n)]
  return [(float(rng.integers(0, 6)), *rng.choice(texts, 2)) for _ in range(n)]


def _source(tmp_path, pairs, **rules):
  path = tmp_path / 's.tsv'
  path.write_text('score\tsentence1\tsentence2\n' + ''.join(
      f'{s}\t{a}\t{b}\n' for s, a, b in pairs))
  return SourceConfig(**{'name': 's', 'kind': 'tsv', 'rows': 'bm25',
                         'path': str(path), 'min_score': 4.0} | rules)


def _loop(query, texts, k1=1.2, b=0.75):
  """BM25, a text and a word at a time."""
  docs = [re.findall(r'\w+', t.lower()) for t in texts]
  average = sum(map(len, docs)) / len(docs)
  scores = []
  for doc in docs:
    total = 0.0
    for word in re.findall(r'\w+', query.lower()):
      having = sum(word in d for d in docs)
      idf = math.log(1 + (len(docs) - having + .5) / (having + .5))
      count = doc.count(word)
      total += idf * count * (k1 + 1) / (
          count + k1 * (1 - b + b * len(doc) / average))
    scores.append(total)
  return scores


def test_bm25_is_its_formula():
  texts = [a for _, a, _ in _pairs(40)] + ['', 'Cat, CAT!']
  index = bm25.Bm25(texts)
  for query in ('cat sat', 'old old DOG', 'unknown', '', 'red rug cat'):
    np.testing.assert_allclose(index.scores(query), _loop(query, texts), rtol=1e-5)


@pytest.mark.parametrize('bar', [None, 2.0])
def test_negatives_against_a_loop(tmp_path, bar):
  pairs = _pairs(60)
  found = data.load(_source(tmp_path, pairs, symmetric=True, max_negative_score=bar))
  kept = [(a, b) for s, a, b in pairs if s >= 4]
  assert [(e.query, e.positives[0].text) for e in found] == [
      p for a, b in kept for p in ((a, b), (b, a))]
  texts = list(dict.fromkeys(t for _, a, b in pairs for t in (a, b)))
  met = 0
  for example in found:
    query, right = example.query, example.positives[0].text
    score = dict(zip(texts, _loop(query, texts)))  # both sides are the pool
    near = {query, right}
    for s, a, b in pairs:
      if s >= 4 or (bar is not None and s > bar):
        near |= {b} if a in (query, right) else set()
        near |= {a} if b in (query, right) else set()
    usable = {t for t in texts if t not in near and score[t] <= 0.95 * score[right]}
    wrong = [n.text for n in example.negatives]
    assert len(wrong) == len(set(wrong)) == min(32, len(usable))
    assert set(wrong) <= usable
    worth = [score[t] for t in wrong]
    assert worth == pytest.approx(sorted(worth, reverse=True))
    left = usable - set(wrong)
    assert not left or max(score[t] for t in left) <= worth[-1] + 1e-5
    met += len(wrong)
  assert met > 100


def test_pairs_without_scores(tmp_path):
  """One way: the pool is the positives; a row's own negatives stay in front."""
  rows = [{'query': 'red cat', 'pos': ['the red cat sat', 'cats'], 'neg': ['own']},
          {'query': 'red cat', 'positive': 'a red red cat'},  # answers the first too
          {'query': 'old dog', 'positive': 'a red dog'},
          {'query': 'big rug', 'positive': 'no word of it'}]
  path = tmp_path / 'p.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  found = data.load(SourceConfig(name='p', rows='bm25', path=str(path)))
  wrong = [[n.text for n in e.negatives] for e in found]
  assert wrong[0] == ['own', 'a red dog', 'no word of it']
  assert wrong[1] == ['a red dog', 'no word of it']
  assert wrong[2][0] in ('the red cat sat', 'cats', 'a red red cat', 'no word of it')
  # Nothing may match better than a positive that shares no word.
  assert sorted(wrong[3]) == ['a red dog', 'a red red cat', 'cats', 'the red cat sat']


def test_one_way_by_default_and_nothing_high_enough(tmp_path):
  pairs = [(5.0, 'a cat', 'one cat'), (0.0, 'a dog', 'a mat')]
  found = data.load(_source(tmp_path, pairs))
  assert [(e.query, e.positives[0].text) for e in found] == [('a cat', 'one cat')]
  with pytest.raises(data.BadRow, match='no rows with a score of 5.5'):
    data.load(_source(tmp_path, pairs, min_score=5.5))


def test_real_pairs(shared_data):
  path = shared_data / 'sts/stsb/train.tsv'
  found = data.load(SourceConfig(
      name='sts', kind='tsv', rows='bm25', path=str(path), symmetric=True,
      min_score=4.0, max_negative_score=2.5))
  lines = [x.split('\t') for x in path.read_text('utf-8').splitlines()[1:]]
  high = {(a, b) for s, a, b in lines if float(s) > 2.5}
  assert len(found) == 2 * sum(float(s) >= 4 for s, _, _ in lines)
  for i in range(0, len(found), 50):
    example = found[i]
    wrong = {n.text for n in example.negatives}
    assert wrong and not any((example.query, t) in high or (t, example.query) in high
                             for t in wrong)
