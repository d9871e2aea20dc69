"""Labelled texts as examples: who may be drawn, how often, and from what seed."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest

from jaxembed import data
from jaxembed.config import DataConfig, SourceConfig
from jaxembed.data import sources


@pytest.fixture
def source(tmp_path):
  def source(rows, name='c', kind='same_label', **rules):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return SourceConfig(name=name, path=str(path), rows=kind, in_batch=False, **rules)
  return source


def _rows(sizes):
  """Rows of labels a, b, ..., one label after the other and then shuffled."""
  rows = [{'text': f'{label} text {i}', 'label': label}
          for label, n in sizes.items() for i in range(n)]
  return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def _draw(rows, i, negatives, *seed):
  example = sources.draw(rows, i, negatives, np.random.default_rng(seed))
  return example.query, example.positives[0].text, [n.text for n in example.negatives]


SIZES = {'a': 4, 'b': 2, 'c': 7, 'd': 1}


def test_same_label_right_other_label_wrong(source):
  """Against a plain loop over the file; every candidate is met, none is twice."""
  rows = _rows(SIZES)
  found = data.load(source(rows))
  label = {r['text']: r['label'] for r in rows}
  assert sorted(found[i].query for i in range(len(found))) == sorted(
      t for t in label if label[t] != 'd')  # d's only text has nothing to match
  for i in range(len(found)):
    positives, negatives = set(), set()
    for seed in range(200):
      query, right, wrong = _draw(found, i, 3, seed)
      assert query == found[i].query and len(wrong) == len(set(wrong)) == 3
      positives.add(right)
      negatives |= set(wrong)
    assert positives == {t for t in label if label[t] == label[query] and t != query}
    assert negatives == {t for t in label if label[t] != label[query]}


def test_draws_are_uniform(source):
  found = data.load(source(_rows({'a': 5, 'b': 5})))
  seen = collections.Counter()
  for seed in range(2000):
    _, right, wrong = _draw(found, 3, 1, seed)
    seen.update([right, *wrong])
  rights = [n for t, n in seen.items() if t[0] == found[3].query[0]]
  wrongs = [n for t, n in seen.items() if t[0] != found[3].query[0]]
  assert len(rights) == 4 and max(abs(n - 500) for n in rights) < 5 * 500**.5
  assert len(wrongs) == 5 and max(abs(n - 400) for n in wrongs) < 5 * 400**.5


def test_label_text(source):
  rows = _rows(SIZES)
  found = data.load(source(rows, kind='label_text'))
  label = {r['text']: r['label'] for r in rows}
  assert len(found) == len(rows)
  for i in range(len(found)):
    query, right, wrong = _draw(found, i, 9, i)
    assert right == label[query]
    assert sorted(wrong) == sorted(set('abcd') - {right})
    assert set(_draw(found, i, 2, i)[2]) < set('abcd') - {right}


def test_repeats_count_once_and_torn_texts_not_at_all(source):
  rows = [('x', 'a'), ('y', 'a'), ('x', 'a'), ('z', 'b'), ('w', 'b'), ('torn', 'a'),
          ('torn', 'b')]
  found = data.load(source([{'text': t, 'label': y} for t, y in rows]))
  assert sorted(found[i].query for i in range(len(found))) == ['w', 'x', 'y', 'z']
  for seed in range(50):
    assert _draw(found, 0, 5, seed)[1:] == ('y', ['z', 'w']) or (
        _draw(found, 0, 5, seed)[1:] == ('y', ['w', 'z']))


def test_a_row_read_without_a_seed_is_always_the_same(source):
  found = data.load(source(_rows(SIZES)))
  assert [found[i] for i in range(12)] == [found[i] for i in range(12)]
  with pytest.raises(IndexError):
    found[len(found)]


def test_batches_hold_no_false_negative_and_resume(source, minilm):
  tokenizer = data.Tokenizer.load(minilm)
  rows = _rows({'a': 9, 'b': 5, 'c': 6})
  cfg = DataConfig(sources=[source(rows), source(rows, 'l', 'label_text')],
                   batch_size=8, num_negatives=3, query_lengths=(8,),
                   passage_lengths=(8,))
  label_of = {data.text_id(r['text']): r['label'] for r in rows}
  label_of |= {data.text_id(c): c for c in 'abc'}
  steps = list(itertools.islice(data.batches(cfg, tokenizer, seed=3), 6))
  for batch, info in steps:
    pairing = batch.pairing
    for q, (name, _) in enumerate(info.rows):
      own = pairing.owner == q
      labels = [label_of[i] for i in pairing.passage_id[own].tolist()]
      right = pairing.is_positive[own]
      assert right.tolist() == [True] + [False] * (3 if name == 'c' else 2)
      mine = label_of[int(pairing.query_id[q])]
      assert all((y == mine) == r for y, r in zip(labels, right))
  again = next(data.batches(cfg, tokenizer, seed=3, start_step=4))
  jax.tree.map(np.testing.assert_array_equal, again[0], steps[4][0])
  # Another pass draws another positive.
  drawn = collections.defaultdict(set)
  for batch, info in steps:
    for q, row in enumerate(info.rows):
      at = (batch.pairing.owner == q) & batch.pairing.is_positive
      drawn[row].add(int(batch.pairing.passage_id[at][0]))
  assert any(len(ids) > 1 for (name, _), ids in drawn.items() if name == 'c')


def test_a_rows_own_instruction_goes_with_its_text(source):
  rows = _rows(SIZES)
  for row in rows:
    row['instruction'] = f'what is {row["label"]}?'
  found = data.load(source(rows, query_prompt='{instruction} '), 100)
  assert all(e.instruction == f'what is {e.query[0]}?' for e in found)


def test_columns_and_numbers(source):
  rows = [{'body': f't{i}', 'label': i % 2, 'name': ('even', 'odd')[i % 2]}
          for i in range(6)]
  assert len(data.load(source(rows, columns=('body', 'label')))) == 6
  found = data.load(source(rows, kind='label_text', columns=('body', 'name')))
  assert _draw(found, 0, 5, 0) == ('t0', 'even', ['odd'])
  with pytest.raises(data.BadRow, match=r"c\.jsonl:1: field 'label' is int 0"):
    data.load(source(rows, kind='label_text', columns=('body', 'label')))


@pytest.mark.parametrize('rows, says', [
    ([{'text': 'x', 'label': 'a'}, {'text': 'y'}], r"c\.jsonl:2: no column 'label'"),
    ([{'text': 'x', 'label': 'a'}, {'text': ' ', 'label': 'a'}],
     r"c\.jsonl:2: field 'text' is an empty text"),
    ([{'text': 'x', 'label': 1.5}], r"c\.jsonl:1: field 'label' is float 1\.5"),
    ([{'text': 'x', 'label': True}], r"c\.jsonl:1: field 'label' is bool True"),
    ([{'text': 'x', 'label': ''}], r"c\.jsonl:1: field 'label' is an empty"),
    (['x'], r"c\.jsonl:1: the row is str 'x'"),
    ([{'text': t, 'label': 'a'} for t in 'xyz'], 'two labels, .* are 1; leave'),
    ([{'text': 'x', 'label': t} for t in 'xyz'], 'are 0, without 1 texts that stand'),
    ([{'text': t, 'label': t} for t in 'xyz'], 'no label has two texts'),
])
def test_bad_rows(source, rows, says):
  with pytest.raises(data.BadRow, match=says):
    data.load(source(rows))


@pytest.mark.parametrize('rules, says', [
    ({'rows': 'labels'}, "rows is 'labels'"),
    ({'rows': 'same_label'}, 'needs in_batch=False'),
    ({'rows': 'label_text', 'symmetric': True}, 'neither symmetric nor min_score'),
    ({'rows': 'label_text', 'columns': ('a', 'b', 'c')}, 'the text and its label'),
    ({'rows': 'bm25', 'max_negative_score': 1.0}, "rows='bm25' with min_score"),
    ({'min_score': 4.0, 'max_negative_score': 1.0}, "rows='bm25' with min_score"),
    ({'rows': 'bm25', 'kind': 'installed_code'}, "gives rows='pairs' only"),
])
def test_rules_that_do_not_go_together(rules, says):
  with pytest.raises(ValueError, match=says):
    SourceConfig(**{'name': 'c', 'path': 'x'} | rules)


def test_real_labels(shared_data):
  folder = shared_data / 'classification/banking77'
  found = data.load(SourceConfig(name='b', rows='same_label', in_batch=False,
                                 path=str(folder / 'train.jsonl')), 1000)
  rows = [json.loads(line) for line in (folder / 'train.jsonl').open()]
  label = {r['text']: r['label'] for r in rows}
  assert len(found) == len(label) == 10003
  for i in range(0, len(found), 97):
    query, right, wrong = _draw(found, i, 7, 1, i)
    assert label[right] == label[query] and right != query
    assert len(wrong) == 7 and label[query] not in {label[t] for t in wrong}
