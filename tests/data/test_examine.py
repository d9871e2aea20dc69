"""The report on data says what was planted in it."""

import json
import pathlib

import numpy as np
import pytest

from jaxembed import data
from jaxembed.config import DataConfig, Reads, SourceConfig
from jaxembed.data import data_report, examine, overlap
from jaxembed.train import data_check
from tests.helpers import tiny_run

_LONG = 'one two three four five six seven eight nine ten'


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)


@pytest.fixture
def cfg(tmp_path):
  rows = [{'query': f'query number {i}', 'pos': [f'text {i}'], 'neg': ['no'] * (i % 2)}
          for i in range(40)]
  rows[7] = rows[3]  # a row again
  rows[8]['query'] = rows[3]['query']  # its query alone
  rows[9] = {'query': 'q', 'pos': [f'so {_LONG.upper()}, it says'], 'neg': []}
  lines = [json.dumps(r) for r in rows]
  for i in range(11, 36):
    lines[i] = '{"query": 1, "positive": "p"}'
  (tmp_path / 'r.jsonl').write_text('\n'.join(lines))
  return DataConfig(
      sources=[SourceConfig(name='s', path=str(tmp_path / 'r.jsonl'),
                            query_prompt='ask: ')],
      batch_size=4, num_negatives=1, query_lengths=(9,), passage_lengths=(16,))


def test_counts_are_of_what_is_there(cfg, tokenizer):
  found = examine.examine(cfg, tokenizer, against={'held out': [f'x {_LONG} y', 'zz'],
                                                   'other': [_LONG[:20]]})
  (source,) = found.sources
  assert (source.rows, source.read, source.bad_count) == (40, 40, 25)
  assert len(source.bad) == 20 and found.unusable == 25
  assert source.bad[0].endswith("r.jsonl:12: field 'query' is int 1, not a text")
  assert (source.same_rows, source.same_queries) == (1, 2)
  where = source.bad[0].split(':')[0]
  assert source.overlap == {'held out': (1, (f'{where}:10',)), 'other': (0, ())}
  queries = [json.loads(line)['query']
             for line in pathlib.Path(where).read_text().splitlines()]
  want = sorted(len(tokenizer.encode([f'ask: {q}'], max_length=99).ids)
                for q in queries if q != 1)
  assert sorted(source.query.tokens.tolist()) == want
  assert source.query.quantiles([0.5, 1.0]) == [
      int(np.quantile(want, 0.5, method='higher')), want[-1]]
  assert source.query.truncated == np.mean(np.array(want) > 9)
  assert 4 <= found.candidates <= 8 and 0 < found.padding < 1
  told = data_report.text(found, 'train')
  for says in ('25, which would end a run; the first 20:', '1 come again', '2 have a',
               'overlap    1 rows share 8 words in a row with held out'):
    assert says in told


def test_what_a_run_would_be_refused_for_is_told(tmp_path, tokenizer):
  (tmp_path / 'r.jsonl').write_text(json.dumps(
      {'query': 'q', 'pos': ['p'], 'neg': ['n'], 'pos_scores': [1]}) + '\n')
  cfg = DataConfig(sources=[SourceConfig(name='s', path=str(tmp_path / 'r.jsonl'))],
                   batch_size=1, num_negatives=1)
  first, *_ = examine.examine(cfg, tokenizer, reads=Reads()).notes
  assert first.startswith("a run is refused: source 's': 1 of 1 rows read bring scores")
  assert not any('refused' in n for n in examine.examine(cfg, tokenizer).notes)


def test_a_picture(cfg, tokenizer, tmp_path):
  found = examine.examine(cfg, tokenizer)
  png = data_report.plot([found], tmp_path / 'new' / 'c.png')
  assert png.read_bytes()[:4] == b'\x89PNG'


def test_evaluation_sets_give_queries_and_right_answers(tmp_path):
  (tmp_path / 'qrels').mkdir()
  for name, rows in (('corpus', 'abc'), ('queries', 'xy')):
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(
        json.dumps({'_id': c, 'text': f'text {c}'}) for c in rows))
  (tmp_path / 'qrels/test.tsv').write_text('q\td\tscore\nx\ta\t1\nx\tb\t0\n')
  assert overlap.evaluation_texts(tmp_path) == ['text x', 'text a']


@pytest.mark.parametrize('text, shares', [
    ('ONE, two; three four five six seven EIGHT!', True),
    ('one two three four five six seven', False), ('', False), ('...', False),
    ('今日は良い天気ですね', True), ('良い天気です', False)])
def test_words_in_a_row(text, shares):
  assert (text in overlap.Overlap([_LONG, '今日は良い天気ですね、散歩']) ) == shares


def test_the_launcher_checks_and_makes_no_run(tmp_path, minilm):
  """Text, picture, and exit by an error where a run would meet a bad row."""
  cfg = tiny_run.in_folder(tmp_path, minilm)
  cfg.eval.source = cfg.stages[0].data.sources[0]
  told = []
  data_check.run(cfg, str(tmp_path / 'run'), log=told.append)
  assert 'overlap    40 rows share 8 words in a row with eval.source' in told[0]
  assert (tmp_path / 'run.check.png').exists() and not (tmp_path / 'run').exists()
  with (tmp_path / 'rows.jsonl').open('a') as file:
    file.write('{"query": 3}')
  cfg.eval.source = None
  with pytest.raises(ValueError, match='1 rows cannot be used, as listed above'):
    data_check.run(cfg, str(tmp_path / 'run'), log=told.append)
