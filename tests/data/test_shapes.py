"""Every shape of rows and every format of files are read into the same Examples."""

import csv
import gzip
import itertools
import json

import pytest

from jaxembed import data
from jaxembed.config import SourceConfig
from jaxembed.data.records import BadRow, Example, Passage, from_row

# What is to be read: positives and ragged negatives, quoting's characters inside.
_TRIPLETS = [('wie "alt"\tist, er?', 'p 1\nzwei', ['n', 'm, o']),
             ('q 2 é\u2028x', 'p', ['"quoted"', '']),
             ('q 3', "p '3'", ['n 3', 'm 3'])]


def _want(count=2):
  return [Example(q, (Passage(p),), tuple(Passage(n) for n in ns[:count] if n))
          for q, p, ns in _TRIPLETS]


def _said(text):
  return [{'role': 'user', 'content': text}]


# Shape -> a row of it, of a query, its positive and its negatives.
_SHAPES = {
    'sentence-transformers': lambda q, p, ns: {
        'anchor': q, 'positive': p, 'negative_1': ns[0], 'negative_2': ns[1]},
    'columns of another order': lambda q, p, ns: {
        'negative_2': ns[1], 'positive': p, 'negative_1': ns[0], 'query': q},
    'FlagEmbedding': lambda q, p, ns: {
        'query': q, 'pos': [p], 'neg': [n for n in ns if n]},
    'Tevatron': lambda q, p, ns: {
        'query': q, 'positive_passages': [{'text': p, 'title': ''}],
        'negative_passages': [{'text': n, 'title': ''} for n in ns if n]},
    'ms-swift': lambda q, p, ns: {
        'messages': _said(q), 'positive_messages': [_said(p)],
        'negative_messages': [_said(n) for n in ns if n]},
    'ms-swift 3.5': lambda q, p, ns: {
        'query': q, 'response': p, 'rejected_response': [n for n in ns if n]},
    'embedding-training-data': lambda q, p, ns: [q, p, *ns],
}


def _jsonl(path, rows):
  path.write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows))


def _gz(path, rows):
  _jsonl(path, rows)
  path.write_bytes(gzip.compress(path.read_bytes()))


def _zst(path, rows):
  import pyarrow as pa
  _jsonl(path, rows)
  content = path.read_bytes()
  path.write_bytes(pa.Codec('zstd').compress(content, asbytes=True))


def _cells(path, rows, **dialect):
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]), **dialect)
    writer.writeheader()
    writer.writerows(rows)


def _table(rows):
  import pyarrow as pa
  return pa.Table.from_pylist(rows)


def _parquet(path, rows):
  from pyarrow import parquet
  parquet.write_table(_table(rows), path, row_group_size=2)


def _arrow(path, rows, stream=False, **options):
  import pyarrow as pa
  make = pa.ipc.new_stream if stream else pa.ipc.new_file
  options = pa.ipc.IpcWriteOptions(**options)
  with make(str(path), _table(rows).schema, options=options) as writer:
    writer.write_table(_table(rows), max_chunksize=2)


def _saved(path, rows):
  pytest.importorskip('datasets').Dataset.from_list(rows).save_to_disk(path)


# Format -> the name of a file, how it is written, what the source says of it.
_FORMATS = {
    'jsonl': ('a.jsonl', _jsonl, {}),
    'gzip': ('a.jsonl.gz', _gz, {}),
    'zstd': ('a.jsonl.zst', _zst, {}),
    'csv': ('a.csv', _cells, {}),
    'csv with semicolons': ('a.csv', lambda p, r: _cells(p, r, delimiter=';'),
                            {'delimiter': ';'}),
    'quoted tsv': ('a.tsv', lambda p, r: _cells(p, r, delimiter='\t'),
                   {'quoted': True}),
    'parquet': ('a.parquet', _parquet, {}),
    'arrow': ('a.arrow', _arrow, {}),
    'arrow stream': ('a.arrow', lambda p, r: _arrow(p, r, stream=True), {}),
    'compressed arrow': ('a.feather', lambda p, r: _arrow(p, r * 1, compression='zstd'),
                         {}),
    'datasets': ('a', _saved, {'kind': 'datasets'}),
    'memory': ('', None, {'kind': 'memory'}),
}
_TABLES = ('csv', 'csv with semicolons', 'quoted tsv')
# Of cells that are lists a table without types has none, and Arrow no lists as rows.
_READ = [(f, s) for f, s in itertools.product(_FORMATS, _SHAPES) if not (
    (f in _TABLES and s not in ('sentence-transformers', 'columns of another order'))
    or (f not in ('jsonl', 'gzip', 'zstd', 'memory')
        and s == 'embedding-training-data'))]


@pytest.mark.parametrize('form, shape', _READ)
def test_every_shape_in_every_format_is_the_same_examples(tmp_path, form, shape):
  name, write, rules = _FORMATS[form]
  given = [_SHAPES[shape](*t) for t in _TRIPLETS]
  if name:
    write(tmp_path / name, given)
  source = SourceConfig(name='s', path=str(tmp_path / name) if name else '', **rules)
  rows = data.load(source, 9, given={'s': given})
  assert [rows[i] for i in (2, 0, 1)] == [_want()[i] for i in (2, 0, 1)]
  assert len(rows) == 3
  assert data.fingerprint(source, given={'s': given})['rows'] == 3


def test_a_beir_folder_gives_rows_of_its_judgements(tmp_path):
  (tmp_path / 'qrels').mkdir()
  _jsonl(tmp_path / 'corpus.jsonl', [
      {'_id': f'd{i}', 'title': 'T' * (i == 0), 'text': f'text {i}'}
      for i in range(5)])
  _jsonl(tmp_path / 'queries.jsonl', [{'_id': f'q{i}', 'text': f'ask {i}'}
                                      for i in range(4)])
  (tmp_path / 'qrels/train.tsv').write_text(
      'query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td1\t1\nq0\td2\t0\nq2\td3\t1\n'
      'q3\td9\t1\n')

  def load(**rules):
    with pytest.warns(UserWarning, match='queries have no match'):
      return list(data.load(SourceConfig(
          name='b', kind='beir', path=str(tmp_path), **rules), 9))

  first, second = load()
  assert first == Example(
      'ask 0', (Passage('T text 0', 'd0'), Passage('text 1', 'd1')),
      (Passage('text 2', 'd2'),), query_id='q0')
  assert (second.query, second.where) == ('ask 2', f'{tmp_path}/queries.jsonl:3')
  assert [p.id for p in load(min_score=2.0)[0].positives] == ['d0']


def test_files_of_several_paths_are_read_in_their_order(tmp_path):
  for name in ('b', 'a', 'c'):
    _jsonl(tmp_path / f'{name}.jsonl', [{'query': name, 'positive': 'p'}])
  rows = data.load(SourceConfig(
      name='s', path=str(tmp_path / 'c.jsonl'),
      paths=(str(tmp_path / '[ab].jsonl'), str(tmp_path / 'c.jsonl'))))
  assert [r.query for r in rows] == ['c', 'a', 'b']


def test_a_folder_of_another_kind_is_told(tmp_path):
  _parquet(tmp_path / 'a.parquet', [{'query': 'q', 'positive': 'p'}])
  with pytest.raises(FileNotFoundError, match='files of kind parquet; set kind'):
    data.load(SourceConfig(name='s', path=str(tmp_path)))
  assert len(data.load(SourceConfig(name='s', path=str(tmp_path), kind='parquet'))) == 1


@pytest.mark.parametrize('row, columns, name, says', [
    ({'query': 'q', 'positive': 'p', 'score': 0.5}, (), None, 'but no min_score'),
    ({'a': 'q', 'b': 'p', 'score': 0.5}, ('a', 'b'), None, 'but no min_score'),
    ({'a': 'q', 'b': 'p', 'sim': 0.5}, ('a', 'b'), 'sim', 'but no min_score'),
    ({'query': 'q', 'positive': 'p'}, (), 'sim', "no column 'sim', which score_col"),
    ({'query': 'q', 'positive': 'p', 'label': 'x'}, (), None, "set score_column=''"),
])
def test_a_score_is_never_ignored_unasked(tmp_path, row, columns, name, says):
  _jsonl(tmp_path / 'a.jsonl', [row])
  source = dict(name='s', path=str(tmp_path / 'a.jsonl'), columns=columns)
  with pytest.raises(BadRow, match=says):
    data.load(SourceConfig(**source, score_column=name), 1)
  assert data.load(SourceConfig(**source, score_column=''), 1)[0].score is None


def test_scores_of_triplets_are_margins(tmp_path):
  """As sentence-transformers' MarginMSELoss reads them; a min_score asks otherwise."""
  row = {'query': 'q', 'positive': 'p', 'negative': 'n', 'score': 2.5}
  _jsonl(tmp_path / 'a.jsonl', [row])
  source = dict(name='s', path=str(tmp_path / 'a.jsonl'))
  (found,) = data.load(SourceConfig(**source))
  assert found.positives[0].score - found.negatives[0].score == 2.5
  (found,) = data.load(SourceConfig(**source, min_score=2.0))
  assert (found.score, found.scored) == (2.5, False)
  found = from_row(row | {'negative_1': 'm', 'score': [1.5, -0.5]}, 'f:1')
  assert [found.positives[0].score - n.score for n in found.negatives] == [1.5, -0.5]


def test_the_systems_messages_are_instructions():
  found = from_row({
      'messages': [{'role': 'system', 'content': 'find'}, *_said('q')],
      'positive_messages': [[{'role': 'system', 'content': 'doc'}, *_said('p')]],
  }, 'f:1')
  assert found == Example('q', (Passage('doc p'),), instruction='find')


@pytest.mark.parametrize('row, says', [
    ({'messages': 'q', 'positive_messages': []}, "'messages' is str 'q'; a list"),
    ({'messages': [*_said('q'), {'role': 'assistant', 'content': 'a'}]},
     r"'messages\[1\].role' is 'assistant'"),
    ({'messages': [*_said('q'), *_said('r')]}, r"'messages\[1\].role' is 'user'"),
    ({'messages': _said('q'), 'positive_messages': [_said(3)]},
     r"'positive_messages\[0\]\[0\].content' is int 3"),
    ({'messages': _said('q'), 'images': ['x.jpg']}, "'images' is not empty"),
    ({'messages': _said('q'), 'positive_messages': []}, "field 'positive' is empty"),
])
def test_messages_that_are_no_texts_are_named(row, says):
  with pytest.raises(BadRow, match=f'f:1: .*{says}'):
    from_row(row, 'f:1')
