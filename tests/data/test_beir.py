"""Evaluation sets on disk: no first row is lost, and no header is scored."""

import gzip
import hashlib

import pytest

from jaxembed.data import beir, beir_rows, cache
from jaxembed.data.records import BadRow


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


def test_all_that_a_packed_folder_needs_is_kept_where_it_is_asked_for(
    folder, tmp_path, monkeypatch):
  monkeypatch.setattr(cache, 'HOME', str(tmp_path / 'home'))
  digests = b''
  for name in ('corpus.jsonl', 'queries.jsonl', 'qrels/test.tsv'):
    packed = gzip.compress((folder / name).read_bytes())
    digests += hashlib.sha256(packed).digest()
    (folder / f'{name}.gz').write_bytes(packed)
    (folder / name).unlink()
  rows = beir_rows.BeirRows(folder, 'test', cache_dir=str(tmp_path / 'here'))
  assert rows[0][0]['pos'] == [{'docid': 'd1', 'text': 'T x'}]
  assert rows.digest() == hashlib.sha256(digests).digest()
  assert not (tmp_path / 'home').exists()


@pytest.mark.parametrize('file, text, says', [
    ('corpus.jsonl', '{"_id": "d1", "text": "x"}\n' * 2, ':2: _id .d1. comes a second'),
    ('corpus.jsonl', '{"_id": "d1"}', "jsonl:1: an object with '_id', 'text'"),
    ('corpus.jsonl', '["d1", "x"]', 'jsonl:1: an object'),
    ('corpus.jsonl', '{"_id": true, "text": "x"}', 'jsonl:1: an object'),
    ('queries.jsonl', '{"_id": "q9", "text": "a"}', "judges query 'q1'"),
    ('corpus.jsonl', '{"_id": "d9", "text": "x"}', 'none of the judged documents'),
    ('qrels/test.tsv', 'query-id\tcorpus-id\tscore\nq1\td1\thigh\n',
     "tsv:2: field 'score' is 'high'"),
    ('qrels/test.tsv', 'q1\td1\thigh\n', "tsv:1: field 'score' is 'high'"),
    ('qrels/test.tsv', 'q1\td1\t0.5\n', "'0.5', not a whole number"),
    ('qrels/test.tsv', 'q1\td1\t²\n', 'not a whole number'),
    ('qrels/test.tsv', 'a\tb\tc\nq1\td1\t1\n', 'neither a judgement nor a header'),
    ('qrels/test.tsv', 'a\tb\n', 'three columns'),
    ('qrels/test.tsv', 'q1\td1\t1\nq1\t1\n', 'tsv:2: 2 cells'),
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


_JUDGED = {'q1': {'d1': 2, '2': 0}, 'q2': {'d1': 1}}


@pytest.mark.parametrize('name, text', [
    ('test.tsv', 'query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t2\t0\nq2\td1\t1\n'),
    ('test.tsv', 'q1\td1\t2\nq1\t2\t0\nq2\td1\t1\n'),  # BEIR's, without a header
    ('test.tsv', '\ufeffq1\td1\t2\r\nq1\t2\t0\r\nq2\td1\t1'),
    ('test.txt', 'q1 0 d1 2\nq1 0 2 0\nq2 0 d1 1\n'),  # TREC's
    ('test.tsv', 'q1\tQ0\td1\t2\nq1\tQ0\t2\t0\nq2\tQ0\td1\t1\n'),
    ('test.tsv', 'qid\titeration\tdocno\trel\nq1\t0\td1\t2\nq1\t0\t2\t0\n'
     'q2\t0\td1\t1\n'),
    ('test.tsv', 'corpus-id\tquery-id\tscore\nd1\tq1\t2\n2\tq1\t0\nd1\tq2\t1\n'),
    ('test.tsv', 'q1\td1\t2.0\nq1\t2\t0.0\nq2\td1\t+1\n'),
    ('test.jsonl', '{"query-id": "q1", "corpus-id": "d1", "score": 2}\n'
     '{"query-id": "q1", "corpus-id": 2, "score": 0}\n'
     '{"query-id": "q2", "corpus-id": "d1", "score": 1.0}\n'),
])
@pytest.mark.parametrize('packed', [False, True])
def test_judgements_of_every_form(folder, name, text, packed):
  (folder / 'qrels/test.tsv').unlink()
  data = gzip.compress(text.encode()) if packed else text.encode()
  (folder / 'qrels' / (name + '.gz' * packed)).write_bytes(data)
  assert beir.load(folder).qrels == _JUDGED


def test_judgements_of_absent_documents_stay(folder):
  (folder / 'qrels/test.tsv').write_text('q1\td1\t1\nq1\tgone\t1\n')
  assert beir.load(folder).qrels == {'q1': {'d1': 1, 'gone': 1}}


def test_a_pair_judged_twice_is_told(folder):
  (folder / 'qrels/test.tsv').write_text('q1\td1\t1\nq1\td1\t2\nq1\td1\t2\n')
  with pytest.warns(UserWarning, match=r'1 pairs are judged twice.*test\.tsv:2'):
    assert beir.load(folder).qrels == {'q1': {'d1': 2}}


@pytest.mark.parametrize('corpus, queries', [
    ('d1\tT x\n2\ty\n', 'q1\ta\nq2\tb\n'),  # MS MARCO's, without a header
    ('id\ttitle\ttext\nd1\tT\tx\n2\t\ty\n', 'qid\tquery\nq1\ta\nq2\tb\n'),
    ('text\t_id\nT x\td1\ny\t2\n', '_id\ttext\nq1\ta\nq2\tb'),
])
def test_tabbed_corpora_and_queries(folder, corpus, queries):
  for name, text in (('corpus', corpus), ('queries', queries)):
    (folder / f'{name}.jsonl').unlink()
    (folder / f'{name}.tsv').write_text(text)
  task = beir.load(folder)
  assert task.corpus == {'d1': 'T x', '2': 'y'} and task.queries == {'q1': 'a'}


@pytest.mark.parametrize('text, says', [
    ('id\tbody of a text\nd1\tx\n', 'may be a header or a row'),
    ('num\tbodies\n1\tx\n', "'num' may name a column or be an id"),
    ('d1\n', 'two columns'), ('d1\tx\n2\n', 'tsv:2: 1 cells'),
    ('d1\tx\nd1\ty\n', 'tsv:2: _id .d1. comes a second'),
])
def test_tabbed_mistakes(folder, text, says):
  (folder / 'corpus.jsonl').unlink()
  (folder / 'corpus.tsv').write_text(text)
  with pytest.raises(BadRow, match=says):
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
  with pytest.raises(BadRow, match="tsv:1: no column 'sentence2'"):
    beir.load_scored(path)
  path.write_text('score\tsentence1\tsentence2\nx\ta\tb\n')
  with pytest.raises(BadRow, match=r"a\.tsv:2: field 'score' is 'x'"):
    beir.load_scored(path)
  path.write_text('score\tsentence1\tsentence2\nnan\ta\tb\n')
  with pytest.raises(BadRow, match="field 'score' is 'nan'"):
    beir.load_scored(path)
