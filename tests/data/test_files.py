"""Files by row number, evaluation folders, and damaged ones."""

import gzip
import json
import os
import resource
import subprocess
import sys
import textwrap
import time

import pytest

from jaxembed.config import SourceConfig
from jaxembed.data import files, line_index, sources, unpack
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


@pytest.mark.parametrize('packed', [False, True])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, packed):
  for name, text, rows in (
      ('a.jsonl', b'{"a": 1}\r\n{"a": 2}\r\n', files.JsonLines),
      ('a.tsv', b'a\tb\r\n1\t2\r\n', files.TsvRows)):
    plain, marked = tmp_path / name, tmp_path / f'marked_{name}'
    marked = marked.with_suffix(marked.suffix + '.gz') if packed else marked
    plain.write_bytes(text)
    marked.write_bytes(gzip.compress(line_index.BOM + text) if packed else
                       line_index.BOM + text)
    want = [(row, int(where[-1])) for row, where in rows(plain)]
    assert [(row, int(where[-1])) for row, where in rows(marked)] == want
  alone = tmp_path / 'alone.jsonl'
  alone.write_bytes(line_index.BOM + b'\n')
  assert not len(files.JsonLines(alone))


@pytest.mark.parametrize('content, says', [
    ('{"a": 1}'.encode('utf-16'), 'a.jsonl: UTF-16'),
    ('{"a": 1}'.encode('utf-16-be'), 'a.jsonl: UTF-16'),
    ('{"a": 1}'.encode('utf-32'), 'a.jsonl: UTF-16 or UTF-32'),
    (bytes(99), 'a.jsonl: UTF-16 or UTF-32, or no text'),
    (b'PAR1' + bytes(9), "a.jsonl: a Parquet file; set kind='parquet'"),
    (b'PK\x03\x04' + bytes(9), 'a.jsonl: a zip file'),
    (b'{"a": 1}\r{"a": 2}\r', 'a.jsonl: lines end in CR alone'),
    (b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n', 'a.jsonl:2: a byte order mark stands'),
    (b'{"a": 1, "b": 2, "a": 3}', "a.jsonl:1: not JSON .the key 'a' comes twice"),
    (b'{"b": [{"c": 1, "c": 1}]}', "a.jsonl:1: not JSON .the key 'c' comes twice"),
    (b'{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}', 'a.jsonl:1: lists or obj'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'a.jsonl:1: not JSON'),
    (b'{"a": "\xc0\xaf"}', 'a.jsonl:1: not UTF-8'),
    (b'[\n {"a": 1},\n {"a": 2}\n]\n', "a.jsonl:1: not JSON .*one JSON array .*jq"),
])
def test_what_is_not_lines_of_json_is_named(tmp_path, content, says):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(content)
  with pytest.raises(BadRow, match=says):
    list(files.JsonLines(path))


def test_a_gzip_file_is_known_by_its_content_and_damage_never_passes(tmp_path):
  text = b''.join(b'{"a": %d}\n' % (i * 7919 % 1000) for i in range(200))
  packed = gzip.compress(text, mtime=0)
  (tmp_path / 'a.jsonl').write_bytes(packed)
  assert len(files.JsonLines(tmp_path / 'a.jsonl')) == 200
  damaged = tmp_path / 'b.jsonl.gz'
  for at in range(10, len(packed), 7):  # beyond the header, which has no checksum
    damaged.write_bytes(packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1:])
    with pytest.raises(BadRow, match=r'b\.jsonl\.gz: not a whole gzip file'):
      files.JsonLines(damaged)


def test_a_name_alone_makes_no_gzip_file(tmp_path):
  (tmp_path / 'a.jsonl.gz').write_bytes(b'{"a": 1}\n')
  with pytest.raises(BadRow, match=r'a\.jsonl\.gz: no gzip file, whatever its name'):
    files.JsonLines(tmp_path / 'a.jsonl.gz')


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(unpack, '_SMALL', 1 << 20)
  (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(bytes(1 << 23)))
  with pytest.raises(BadRow, match=r'a\.jsonl\.gz: unpacks to more than 100 times'):
    files.Lines(tmp_path / 'a.jsonl.gz')


@pytest.mark.parametrize('content, says', [
    (b'a\tb\ta\n1\t2\t3\n', ":1: the column 'a' is named twice"),
    (b'a\tb\n1\t2\na\tb\n', ':3: the names of the columns again'),
    (b'a\tb\n1\t2\r3\t4\n', ':2: a CR stands inside'),
    (b'query,positive\n1,2\n', ':1: no tab stands in the line; .*if it is CSV'),
])
def test_tsv_damage_is_named(tmp_path, content, says):
  path = tmp_path / 'a.tsv'
  path.write_bytes(content)
  with pytest.raises(BadRow, match=r'a\.tsv' + says):
    list(files.TsvRows(path))


def test_a_first_line_is_never_lost(tmp_path):
  """It names columns surely, or is a row by request, or is refused."""
  path = tmp_path / 'a.tsv'

  def texts(first, **rules):
    path.write_text(f'{first}\nun chien\ta dog\n')
    rows = sources.load(SourceConfig(name='s', kind='tsv', path=str(path), **rules))
    return [(row.query, row.positives[0].text) for row in rows]

  dog = ('un chien', 'a dog')
  with pytest.warns(UserWarning, match=r'a\.tsv:1: .*fr . en-GB.* names of two lang'):
    assert texts('fr\ten-GB') == [dog]
  assert texts('anchor\tpositive') == [dog]
  assert texts('positive\tanchor') == [dog[::-1]]
  assert texts('Französisch\tEnglisch', header=True) == [dog]
  assert texts('un chat\ta cat', header=False) == [('un chat', 'a cat'), dog]
  assert texts('un chat\ta cat', header=False, columns=('positive', 'query')) == [
      ('a cat', 'un chat'), dog[::-1]]
  for first in ('un chat\ta cat', 'cat\tdog', 'query\tAbfrage'):
    with pytest.raises(BadRow, match=r'a\.tsv:1: the first line .* set header'):
      texts(first)


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


@pytest.mark.parametrize('change', [
    lambda f: os.truncate(f, 20), lambda f: f.write_text('{"a": 3}\n' * 9),
    lambda f: f.open('a').write('{"a": 9}\n'), os.remove,
    lambda f: f.with_name('new').rename(f)])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, change):
  file = tmp_path / 'a.jsonl'
  file.write_text(''.join(f'{{"a": {i}}}\n' for i in range(9)))
  (tmp_path / 'new').write_text('{"b": 1}\n')
  rows = files.JsonLines(file)
  assert rows[8][0] == {'a': 8}
  time.sleep(0.02)  # beyond the clock of the file system
  change(file)
  with pytest.raises(BadRow, match=r'a\.jsonl: (the file changed|there is no such)'):
    rows[8]


def test_rows_are_read_without_jax_and_without_a_tokenizer(tmp_path):
  """They would take five times the memory of the reader of a large file."""
  (tmp_path / 'a.jsonl').write_text('{"query": "q", "pos": ["p"]}\n')
  code = textwrap.dedent(f'''
      import sys
      from jaxembed import config, data
      rows = data.load(config.SourceConfig(name='a', path={str(tmp_path)!r}), 1)
      assert rows[0].query == 'q'
      heavy = {{'jax', 'grain', 'orbax', 'tokenizers', 'transformers', 'pyarrow'}}
      assert not heavy & set(sys.modules)
      assert data.feed.batches is data.batches and callable(data.fingerprint)
      assert not hasattr(data, 'nothing')
  ''')
  subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_more_files_than_may_be_open(tmp_path):
  for i in range(60):
    (tmp_path / f'{i:02}.jsonl').write_text(f'{{"a": {i}}}\n')
  _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  before = resource.getrlimit(resource.RLIMIT_NOFILE)
  used = max(map(int, os.listdir('/proc/self/fd')))
  resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, most))
  try:
    rows = files.Joined([files.JsonLines(p)
                         for p in files.expand(tmp_path, ('.jsonl',))])
    assert [row['a'] for row, _ in rows] == list(range(60))
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
