"""Files by row number, evaluation folders, and damaged ones."""

import gzip
import json

import pytest

from jaxembed.data import beir, files
from jaxembed.data.records import BadRow


@pytest.mark.parametrize('ending', ['\n', '\r\n'])
@pytest.mark.parametrize('last', ['', '\n'])
@pytest.mark.parametrize('packed', [False, True])
def test_rows_by_number(tmp_path, ending, last, packed):
  rows = [{'t': 'é\n1'}, {'t': '\u2028'}, {'t': ''}]
  text = ending + ending.join(json.dumps(r, ensure_ascii=False) for r in rows[:2])
  text += ending * 2 + json.dumps(rows[2]) + last
  path = tmp_path / ('a.jsonl.gz' if packed else 'a.jsonl')
  path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
  found = files.JsonLines(path)
  assert [found[i] for i in (2, 0, 1)] == [
      (rows[2], f'{path}:5'), (rows[0], f'{path}:2'), (rows[1], f'{path}:3')]
  assert len(found) == 3


def test_an_empty_file(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(b'')
  (tmp_path / 'b.jsonl').write_bytes(b'\n\n')
  assert len(files.JsonLines(tmp_path / 'a.jsonl')) == 0
  assert len(files.JsonLines(tmp_path / 'b.jsonl')) == 0


def test_damage_is_named(tmp_path):
  bad = tmp_path / 'a.jsonl'
  bad.write_bytes(b'{"a": 1}\n{"a": \n\xff\n')
  rows = files.JsonLines(bad)
  with pytest.raises(BadRow, match=r'a\.jsonl:2: not JSON'):
    rows[1]
  with pytest.raises(BadRow, match=r'a\.jsonl:3: not UTF-8'):
    rows[2]
  half = tmp_path / 'b.jsonl.gz'
  half.write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:20])
  with pytest.raises(BadRow, match=r'b\.jsonl\.gz: not a whole gzip file'):
    files.JsonLines(half)


def test_tsv_has_no_quoting(tmp_path):
  path = tmp_path / 'a.tsv'
  path.write_text('en\tde\n"a\tb"\nc\n')
  rows = files.TsvRows(path)
  assert rows[0] == ({'en': '"a', 'de': 'b"'}, f'{path}:2')
  with pytest.raises(BadRow, match=r'a\.tsv:3: 1 cells, .* 2 columns \(en, de\)'):
    rows[1]


def test_a_path_is_a_file_a_folder_or_a_glob(tmp_path):
  for name in ('b.jsonl', 'a.jsonl.gz', 'c.txt', 'd[1].jsonl'):
    (tmp_path / name).write_bytes(gzip.compress(b'') if 'gz' in name else b'')

  def names(path):
    return [p.name for p in files.expand(path, ('.jsonl', '.jsonl.gz'))]

  assert names(tmp_path) == ['a.jsonl.gz', 'b.jsonl', 'd[1].jsonl']
  assert names(tmp_path / '*.jsonl') == ['b.jsonl', 'd[1].jsonl']
  assert names(tmp_path / 'd[1].jsonl') == ['d[1].jsonl']
  with pytest.raises(FileNotFoundError, match='names no file'):
    names(tmp_path / 'x*')


def test_joined_counts_through_empty_parts():
  joined = files.Joined([[1, 2], [], [3]])
  assert list(joined) == [1, 2, 3]
  with pytest.raises(IndexError):
    joined[3]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'qrels').mkdir()
  (tmp_path / 'corpus.jsonl').write_text(
      '{"_id": "d1", "title": "T", "text": "x"}\n{"_id": 2, "text": "y"}\n')
  (tmp_path / 'queries.jsonl').write_text(
      '{"_id": "q1", "text": "a"}\n{"_id": "q2", "text": "b"}\n')
  (tmp_path / 'qrels/test.tsv').write_text(
      'query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t2\t0\n')
  return tmp_path


def test_beir_folder(folder):
  task = beir.load(folder)
  assert task.corpus == {'d1': 'T x', '2': 'y'}
  assert task.queries == {'q1': 'a'}
  assert task.qrels == {'q1': {'d1': 2, '2': 0}}


@pytest.mark.parametrize('file, text, says', [
    ('corpus.jsonl', '{"_id": "d1", "text": "x"}\n' * 2, ':2: _id .d1. comes a second'),
    ('corpus.jsonl', '{"_id": "d1"}', "jsonl:1: an object with '_id' and 'text'"),
    ('queries.jsonl', '{"_id": "q9", "text": "a"}', "judges query 'q1'"),
    ('corpus.jsonl', '{"_id": "d1", "text": "x"}', "document '2' of query 'q1'"),
    ('qrels/test.tsv', 'a\tb\tc\nq1\td1\thigh\n', "'score' is 'high'"),
    ('qrels/test.tsv', 'a\tb\n', 'three columns'),
])
def test_beir_mistakes(folder, file, text, says):
  (folder / file).write_text(text)
  with pytest.raises(BadRow, match=says):
    beir.load(folder)


def test_beir_missing_files(folder):
  with pytest.raises(FileNotFoundError, match=r'qrels/dev\.tsv'):
    beir.load(folder, 'dev')
  (folder / 'corpus.jsonl').unlink()
  with pytest.raises(FileNotFoundError, match=r'corpus\.jsonl \(or corpus\.jsonl\.gz'):
    beir.load(folder)


def test_real_sets_have_the_sizes_their_readme_says(shared_data):
  task = beir.load(shared_data / 'retrieval/scifact')
  assert (len(task.corpus), len(task.queries)) == (5183, 300)
  assert sum(map(len, task.qrels.values())) == 339
  train = beir.load(shared_data / 'retrieval/scifact', 'train')
  assert (len(train.queries), sum(map(len, train.qrels.values()))) == (809, 919)
  pairs = beir.load_scored(shared_data / 'sts/stsb/test.tsv')
  assert len(pairs.first) == len(pairs.second) == len(pairs.scores) == 1379
  assert 0 <= min(pairs.scores) <= max(pairs.scores) <= 5


def test_scored_pairs_mistakes(tmp_path):
  path = tmp_path / 'a.tsv'
  path.write_text('score\tsentence1\n1\ta\n')
  with pytest.raises(BadRow, match="no column 'sentence2'"):
    beir.load_scored(path)
  path.write_text('score\tsentence1\tsentence2\nx\ta\tb\n')
  with pytest.raises(BadRow, match=r"a\.tsv:2: field 'score' is 'x'"):
    beir.load_scored(path)
