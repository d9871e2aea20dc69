"""Malformed rows of every kind: named by file, line and field, or skipped."""

import dataclasses
import gzip
import itertools
import json
import shutil

import pyarrow as pa
import pytest

from jaxembed import data
from jaxembed.config import DataConfig, SourceConfig
from jaxembed.data.fields import BadFile, BadRow

_GOOD = [{'query': f'query {i}', 'positive': f'text {i}', 'pos_scores': [0.5]}
         for i in range(6)]


def _line(**changes) -> bytes:
  row = {k: v for k, v in (_GOOD[2] | changes).items() if v is not ...}
  return json.dumps(row).encode('utf-8', 'surrogatepass')


# Kind -> (the third line of a file, what is said of it behind 'file:3: ').
_ROWS = {
    'a number for a text': (_line(query=7), "field 'query' is int 7, not a text"),
    'a list for a text': (_line(query=['q']), "field 'query' is list"),
    'an object for texts': (_line(positive={'a': 'b'}),
                            "field 'positive' has no 'text'"),
    'null for a text': (_line(query=None), "field 'query' is NoneType"),
    'an empty text': (_line(query=' '), "field 'query' is an empty text"),
    'an empty passage': (_line(positive=['']), r"field 'positive\[0\]' is an empty"),
    'no positive': (_line(positive=...), 'no positive; one of the fields positive'),
    'no query': (_line(query=...), 'no query; one of the fields query'),
    'an empty list of positives': (_line(positive=[]), "field 'positive' is empty"),
    'a score that is NaN': (_line(pos_scores=[float('nan')]),
                            "field 'pos_scores' is nan, not a finite number"),
    'a score out of range': (_line(pos_scores=[1e39]), "field 'pos_scores' is 1e.39"),
    'a score that is a text': (_line(pos_scores=['high']),
                               "field 'pos_scores' is 'high'"),
    'more scores than texts': (_line(pos_scores=[1, 2]),
                               "field 'pos_scores' must be a list"),
    'invalid UTF-8': (b'{"query": "\xff", "positive": "p"}', 'not UTF-8'),
    'a byte order mark inside': (b'\xef\xbb\xbf' + _line(), 'a byte order mark stands'),
    'a CR as an end of a line': (_line() + b'\r' + _line(), 'not JSON'),
    'half of a character': (_line(query='a\ud800'),
                            "field 'query' holds half of a character at 1"),
    'a key twice': (b'{"query": "q", "positive": "p", "query": "r"}',
                    "not JSON .the key 'query' comes twice"),
    'half a line': (_line()[:20], 'not JSON'),
    'no object': (b'"text"', 'the row is str'),
    'a list too short': (b'["q"]', 'the row is a list of 1'),
    'a line of 100 MB': (b'{"query": "' + b'x' * 100_000_000 + b'"}',
                         'a line of more than 67108864 bytes'),
    'nothing but brackets': (b'[' * 100_000, 'lists or objects nest too deeply'),
}


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)


def _write(path, third: bytes):
  lines = [json.dumps(row).encode() for row in _GOOD]
  path.write_bytes(b'\n'.join([*lines[:2], third, *lines[3:]]) + b'\n')
  return path


@pytest.mark.parametrize('kind', _ROWS)
def test_a_malformed_row_is_named_or_skipped(tmp_path, tokenizer, kind):
  line, says = _ROWS[kind]
  file = _write(tmp_path / 'rows.jsonl', line)

  def mixture(policy):
    return data.open_mixture(DataConfig(
        sources=[SourceConfig(name='s', path=str(file), on_bad_row=policy)],
        batch_size=6, query_lengths=(8,), passage_lengths=(8,), prefetch=0))

  with pytest.raises(BadRow, match=rf'rows\.jsonl:3: {says}') as found:
    mixture('fail')
  assert len(str(found.value)) < 900 and '\n' not in str(found.value)
  opened = mixture('skip')
  assert opened.sources[0].seen.bad.count == 1
  (note,) = [n for n in opened.notes() if 'cannot be used' in n]
  assert 'are skipped' in note and 'rows.jsonl:3' in note
  (batch, info), = itertools.islice(data.batches(opened, tokenizer, seed=0), 1)
  assert info.counts.skipped_rows == 1 and batch.query.mask.any(1).all()


def test_a_line_separator_inside_json_ends_no_row(tmp_path):
  file = _write(tmp_path / 'r.jsonl', '{"query": "a\u2028b", "positive": "p"}'.encode())
  rows = data.load(SourceConfig(name='s', path=str(file)), 9)
  assert (len(rows), rows[2].query) == (6, 'a\u2028b')


@pytest.mark.parametrize('packed, cut', [
    (gzip.compress, 10), (gzip.compress, 0),
    (lambda x: pa.Codec('zstd').compress(x, asbytes=True), 10),
    (lambda x: pa.Codec('zstd').compress(x, asbytes=True), 0)])
def test_a_packed_file_that_is_damaged_is_named_whatever_the_policy(
    tmp_path, packed, cut):
  content = packed(b''.join(json.dumps(row).encode() + b'\n' for row in _GOOD * 20))
  content = content[:-cut] if cut else (
      content[:40] + bytes([content[40] ^ 0x55]) + content[41:])
  file = tmp_path / ('r.jsonl.gz' if packed is gzip.compress else 'r.jsonl.zst')
  file.write_bytes(content)
  for policy in ('fail', 'skip'):
    with pytest.raises(BadRow, match=r'r\.jsonl\.(gz|zst): not a whole .* copy it'):
      data.load(SourceConfig(name='s', path=str(file), on_bad_row=policy))


@pytest.mark.parametrize('content, says', [
    (b'query,positive\n"a,b\nc,d\n', ':2: a quotation mark opens .* none closes'),
    (b'query,positive\n"a"b,c\n', ':2: not CSV'),
    (b'query,positive\na,b,c\n', ':2: 3 cells, but the first line names 2 columns'),
    (b'query,positive\n"a\n\nb",c\nd\n', ':5: 1 cells'),
    (b'query,positive\n"a\n\nb",\n', ":2: field 'positive' is an empty text"),
    (b'query;positive\na;b\n', ":1: no ',' stands in the line; set delimiter=';'"),
    (b'query,positive\na,b\rc,d\n', ':2: a CR stands inside the line'),
    (b'"query","positive"\n"\xff",b\n', ':2: not UTF-8'),
    (b'PAR1' + bytes(9), ": a Parquet file; set kind='parquet'"),
])
def test_damage_of_csv_is_named_by_the_line_where_a_record_begins(
    tmp_path, content, says):
  file = tmp_path / 'a.csv'
  file.write_bytes(content)
  with pytest.raises(BadRow, match=rf'a\.csv{says}'):
    data.load(SourceConfig(name='s', path=str(file)), 9)


def test_a_line_of_csv_that_is_too_long_is_one_bad_row(tmp_path, monkeypatch):
  from jaxembed.data import line_index
  monkeypatch.setattr(line_index, 'LONGEST', 1000)
  file, long = tmp_path / 'a.csv', 'x' * 3000
  for cell in (long, f'"{long}"', f'"{long}', f'"a ""{long}'):
    file.write_text(f'query,positive\n"a\nb",c\n{cell},d\ne,f\n')
    source = SourceConfig(name='s', path=str(file))
    with pytest.raises(BadRow, match=r'a\.csv:4: a line of more than 1000 bytes'):
      data.load(source, 9)
    skipping = data.load(dataclasses.replace(source, on_bad_row='skip'), 9)
    assert [skipping[i].query for i in (0, 2)] == ['a\nb', 'e']
  file.write_text('query,positive\n"a,b\n' + 'c,d\n' * 400)
  with pytest.raises(BadRow, match=r'a\.csv:2: a quotation mark opens a cell'):
    data.load(source, 9)


def _saved(rows, path):
  folder = path.with_suffix('')
  pytest.importorskip('datasets').Dataset.from_list(rows).save_to_disk(folder)
  return SourceConfig(name='s', kind='datasets', path=str(folder))


def _parquet(rows, path):
  from pyarrow import parquet
  parquet.write_table(pa.Table.from_pylist(rows), path)
  return SourceConfig(name='s', path=str(path))


def _memory(rows, _):
  return SourceConfig(name='s', kind='memory')


_TABLE_ROWS = {
    'null': ({'query': None}, "field 'query' is NoneType None, not a text"),
    'an empty text': ({'positive': ' '}, "field 'positive' is an empty text"),
    'no positive': ({'positive': None}, "field 'positive' is empty; a row needs"),
    'a score that is NaN': ({'score': float('nan')}, "field 'score' is nan"),
    'a score out of range': ({'score': 1e39}, "field 'score' is 1e.39"),
    'invalid UTF-8': ({'extra': b'a\xff'}, "field 'extra' is not UTF-8"),
    'half of a character': ({'query': 'a\ud800'}, "field 'query' holds half of a char"),
    'a number': ({'query': 7}, "field 'query' is int 7, not a text"),
}


@pytest.mark.parametrize('kind', _TABLE_ROWS)
@pytest.mark.parametrize('form, where', [
    (_memory, r's\[2\]'), (_parquet, r'a\.parquet:3'), (_saved, r'a\[train\]:2')])
def test_a_malformed_row_of_a_table_is_named_by_row_and_field(
    tmp_path, form, where, kind):
  changes, says = _TABLE_ROWS[kind]
  if form is not _memory and kind in ('half of a character', 'a number'):
    pytest.skip('a table of texts cannot hold it')
  rows = [{'query': f'q {i}', 'positive': f'p {i}', 'score': 0.5, 'extra': b'e'}
          for i in range(5)]
  rows[2] |= changes
  source = dataclasses.replace(form(rows, tmp_path / 'a.parquet'), min_score=0.1)
  with pytest.raises(BadRow, match=rf'{where}: {says}'):
    data.load(source, 9, given={'s': rows})


def test_damage_inside_of_a_table_is_no_fault_of_the_cache(tmp_path):
  source = _parquet([{'query': f'q{i * 7919 % 1000}', 'positive': f'p{i}'}
                     for i in range(2000)], tmp_path / 'a.parquet')
  content = bytearray((tmp_path / 'a.parquet').read_bytes())
  content[200:260] = b'\x55' * 60
  (tmp_path / 'a.parquet').write_bytes(bytes(content))
  with pytest.raises(BadRow, match=r'a\.parquet: not a whole .*; copy it again'):
    data.load(source)


def test_damage_of_tables_is_named(tmp_path):
  from pyarrow import parquet
  table = pa.table({'query': ['a', 'b'], 'positive': pa.array(
      [b'p', b'\xff'], pa.binary()), 'label': pa.array([None, None], pa.float64())})
  for name, write in (('a.parquet', parquet.write_table),
                      ('a.arrow', lambda t, p: pa.feather.write_feather(t, p))):
    import pyarrow.feather  # noqa: F401
    file = tmp_path / name
    write(table, str(file))
    source = SourceConfig(name='s', path=str(file))
    with pytest.raises(BadRow, match=rf"{name}:2: field 'positive' is not UTF-8"):
      data.load(source, 9)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BadRow, match=rf'{name}: not a whole Parquet or Arrow file'):
      data.load(source)


@pytest.mark.parametrize('name', [
    'a.csv', 'a.jsonl.gz', 'a.jsonl.zst', 'a.parquet', 'a.arrow', 'a'])
def test_a_source_that_changes_is_noticed_whatever_was_made_of_it(tmp_path, name):
  from tests.data import test_shapes as shapes
  form = {'a.csv': 'csv', 'a.jsonl.gz': 'gzip', 'a.jsonl.zst': 'zstd',
          'a.parquet': 'parquet', 'a.arrow': 'arrow', 'a': 'datasets'}[name]
  write, rows = shapes._FORMATS[form][1], [{'query': 'q', 'positive': 'p'}] * 3
  source = SourceConfig(name='s', path=str(tmp_path / name), on_bad_row='skip',
                        **shapes._FORMATS[form][2])
  write(tmp_path / name, rows)
  found, mark = data.load(source), data.fingerprint(source)
  assert found[2].query == 'q'
  write(tmp_path / name, rows * 2)
  with pytest.raises(BadFile, match=rf'/{name}(/.*)?: the file changed'):
    found[2]
  assert len(data.load(source)) == 6 and data.fingerprint(source) != mark
  shutil.rmtree(tmp_path / name) if name == 'a' else (tmp_path / name).unlink()
  with pytest.raises((BadFile, FileNotFoundError), match=rf'{name}'):
    data.load(source)[0]


def test_a_saved_dataset_that_is_no_longer_whole_is_named(tmp_path):
  pytest.importorskip('datasets').disable_progress_bars()
  source = _saved([{'query': 'q', 'positive': 'p'}], tmp_path / 'a')
  with pytest.raises(FileNotFoundError, match="save_to_disk; set kind='datasets'"):
    data.load(SourceConfig(name='s', path=str(tmp_path / 'a')))
  file, = (tmp_path / 'a').glob('*.arrow')
  file.write_bytes(file.read_bytes()[:50])
  with pytest.raises(BadRow, match='a: a file .* gone or damaged .*copy the folder'):
    data.load(source)
  file.unlink()
  with pytest.raises(BadRow, match=f'a: a file .* gone or damaged .*{file.name}'):
    data.load(source)
  with pytest.raises(BadRow, match='b: the dataset has no rows'):
    data.load(_saved([], tmp_path / 'b'))


def test_what_was_made_for_a_file_before_is_removed(tmp_path, monkeypatch):
  from jaxembed.data import cache
  monkeypatch.setattr(cache, 'HOME', str(tmp_path / 'cache'))
  file = tmp_path / 'a.jsonl.gz'
  for count in (1, 2, 3):
    file.write_bytes(gzip.compress(b'{"query": "q", "positive": "p"}\n' * count))
    for _ in range(2):
      assert len(data.load(SourceConfig(name='s', path=str(file)))) == count
  assert len(list((tmp_path / 'cache').rglob('content'))) == 1


def test_a_cache_without_room_is_told_with_a_remedy(tmp_path):
  (tmp_path / 'full').write_text('no folder')
  file = tmp_path / 'a.jsonl.gz'
  file.write_bytes(gzip.compress(b'{"query": "q", "positive": "p"}\n'))
  with pytest.raises(BadFile, match=r'a\.jsonl\.gz: .* set cache_dir of the source'):
    data.load(SourceConfig(name='s', path=str(file), cache_dir=str(tmp_path / 'full')))


@pytest.mark.parametrize('name, content', [
    ('a.jsonl', b'\r\n'.join(json.dumps(r).encode() for r in _GOOD) + b'\n\n\r\n'),
    ('a.csv', b'\xef\xbb\xbfquery,positive\r\n\r\n' + b'"a\n,""b""",c\r\n' * 6)])
def test_the_index_on_disk_is_the_one_in_memory(tmp_path, monkeypatch, name, content):
  from jaxembed.data import line_index
  file = tmp_path / name
  file.write_bytes(content)
  source = SourceConfig(name='s', path=str(file))
  want = [(row, row.where) for row in data.load(source)]
  monkeypatch.setattr(line_index, '_CACHED', 0)
  mark = data.fingerprint(source)
  for _ in range(2):
    monkeypatch.setattr(line_index, '_CHUNK', 7)
    assert [(row, row.where) for row in data.load(source)] == want
  monkeypatch.undo()
  assert data.fingerprint(source) == mark
