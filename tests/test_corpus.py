"""A corpus on disk: in order, resumed exactly, never half there."""

import errno
import gzip
import json
import os

import numpy as np
import pytest

from jaxembed import corpus
from jaxembed.data import text_rows
from tests.helpers.tiers import after

ROWS = 9
# Batches of other neighbours: only the order of sums differs.
ROUNDING = 2e-6


@pytest.fixture
def source(tmp_path):
  file = tmp_path / 'texts.jsonl'
  file.write_text(''.join(
      json.dumps({'body': f'Text number {i}.'}) + '\n' for i in range(ROWS)))
  return file


def test_vectors_are_those_of_encode(embedder, source, tmp_path):
  target = tmp_path / 'out.npy'
  vectors = corpus.encode_file(embedder, source, target, field='body', part=4)
  expected = embedder.encode(list(corpus.read_texts(source, 'body')))
  np.testing.assert_allclose(vectors, expected, atol=ROUNDING)
  np.testing.assert_array_equal(np.load(target, mmap_mode='r'), vectors)
  assert not list(tmp_path.glob('*.partial')) + list(tmp_path.glob('*.progress*'))


def _stop_after(embedder, parts, monkeypatch):
  """Makes the embedder die once it has encoded so many parts."""
  encode, calls = embedder.encode, []

  def dying(*args, **kwargs):
    if len(calls) == parts:
      raise KeyboardInterrupt
    calls.append(1)
    return encode(*args, **kwargs)

  monkeypatch.setattr(embedder, 'encode', dying)
  return calls


def test_an_interrupted_call_continues(embedder, source, tmp_path, monkeypatch):
  target = tmp_path / 'out.npy'
  with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
    _stop_after(embedder, 2, m)
    corpus.encode_file(embedder, source, target, field='body', part=3)
  assert not target.exists()
  with monkeypatch.context() as m:
    calls = _stop_after(embedder, 9, m)
    vectors = corpus.encode_file(embedder, source, target, field='body', part=3)
  assert len(calls) == 1  # six of nine rows were there
  whole = corpus.encode_file(
      embedder, source, tmp_path / 'whole.npy', field='body', part=3)
  np.testing.assert_array_equal(vectors, whole)


def test_other_work_is_not_continued(embedder, source, tmp_path, monkeypatch):
  target = tmp_path / 'out.npy'
  with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
    _stop_after(embedder, 1, m)
    corpus.encode_file(embedder, source, target, field='body', part=3)
  with pytest.raises(ValueError, match=r"3 rows of other work: prompt was ''"):
    corpus.encode_file(embedder, source, target, field='body', prompt='q: ')
  source.write_text(source.read_text().replace('number', 'no'))
  with pytest.raises(ValueError, match='sha256'):
    corpus.encode_file(embedder, source, target, field='body')
  corpus.encode_file(embedder, source, target, field='body', overwrite=True)


def test_a_finished_target_is_refused(embedder, source, tmp_path):
  target = tmp_path / 'out.npy'
  target.write_bytes(b'mine')
  with pytest.raises(FileExistsError, match=r'out\.npy exists'):
    corpus.encode_file(embedder, source, target, field='body')
  assert target.read_bytes() == b'mine'


def test_half_precision_and_fewer_dimensions(embedder, source, tmp_path):
  vectors = corpus.encode_file(embedder, source, tmp_path / 'o.npy', field='body',
                               dtype='float16', truncate_dim=32, normalize=True)
  assert vectors.dtype == np.float16 and vectors.shape == (ROWS, 32)
  # Half precision keeps 11 bits of numbers below 1.
  np.testing.assert_allclose(np.linalg.norm(
      vectors.astype(np.float32), axis=-1), 1, atol=1e-3)


def _store(embedder, source, target, **settings):
  return corpus.encode_file(embedder, source, target, field='body', part=2,
                            shard_rows=4, **settings)


def test_a_store_holds_the_same_vectors_and_ids(embedder, source, tmp_path):
  source.write_text(''.join(json.dumps({'_id': f'd{i}', 'body': f'Text number {i}.'})
                            + '\n' for i in range(ROWS)))
  found = _store(embedder, source, tmp_path / 'v')
  np.testing.assert_allclose(
      found[:], embedder.encode(list(corpus.read_texts(source, 'body'))), atol=ROUNDING)
  assert found.ids == [f'd{i}' for i in range(ROWS)]
  assert found.work['model'] == embedder.vector_fingerprint()
  halves = [_store(embedder, source, tmp_path / 'w', host=(i, 2)) for i in (1, 0)]
  assert halves[0] is None
  np.testing.assert_array_equal(halves[1][:], found[:])
  with pytest.raises(ValueError, match=r"texts.jsonl:1: field 'name' holds no id"):
    _store(embedder, source, tmp_path / 'x', id_field='name')


@pytest.mark.thorough
def test_a_killed_store_encodes_nothing_twice(embedder, source, tmp_path, monkeypatch):
  # Other shapes are known to the model before one of the two, and not the other.
  source.write_text(''.join(json.dumps({'body': 'word ' * (1 + i * i)}) + '\n'
                            for i in range(ROWS)))
  embedder.shapes = set()
  whole = _store(embedder, source, tmp_path / 'whole')
  for stop in (1, 3):
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
      calls = _stop_after(embedder, stop, m)
      _store(embedder, source, tmp_path / 'v')
    assert len(calls) == stop
    embedder.encode(['other neighbours'] * stop)
  with monkeypatch.context() as m:
    calls = _stop_after(embedder, 99, m)
    found = _store(embedder, source, tmp_path / 'v')
  assert len(calls) == 5 - 1 - 3
  np.testing.assert_array_equal(found[:], whole[:])


def test_lines_of_a_gzipped_text_file(tmp_path):
  file = tmp_path / 'texts.txt.gz'
  file.write_bytes(gzip.compress('one\r\n\nthree\u2028still three\n'.encode()))
  assert list(corpus.read_texts(file)) == ['one', '', 'three\u2028still three']


@pytest.mark.parametrize('row, message', [
    ('{"body": "a"}', r"texts.jsonl:2: field 'text' holds no text.*body"),
    ('{"text": 3}', r"texts.jsonl:2: field 'text' holds no text"),
    ('[1]', 'texts.jsonl:2.*list'),
    ('{"text": ' + '[' * 100000 + ']' * 100000 + '}', 'texts.jsonl:2.*too deeply'),
    ('{"text": "a", "n": ' + '9' * 5000 + '}', 'texts.jsonl:2: not JSON'),
    ('{"text": "\\ud83d"}', "texts.jsonl:2: field 'text' is not Unicode"),
    ('{"text": ', 'texts.jsonl:2: not JSON'),
])
def test_a_bad_row_is_named(tmp_path, row, message):
  file = tmp_path / 'texts.jsonl'
  file.write_text('{"text": "fine"}\n' + row + '\n')
  with pytest.raises(ValueError, match=message):
    list(corpus.read_texts(file))


def test_bad_arguments_are_named(embedder, tmp_path):
  empty = tmp_path / 'empty.txt'
  empty.touch()
  with pytest.raises(ValueError, match='is empty'):
    corpus.encode_file(embedder, empty, tmp_path / 'o.npy')
  with pytest.raises(ValueError, match=r'must end in \.npy'):
    corpus.encode_file(embedder, empty, tmp_path / 'o.bin')
  with pytest.raises(ValueError, match="'int8' is not stored"):
    corpus.encode_file(embedder, empty, tmp_path / 'o.npy', dtype='int8')
  for wrong in ({'part': 0}, {'part': 2.0}, {'batch_size': 0}, {'truncate_dim': 0},
                {'truncate_dim': 999}, {'field': ''}, {'prompt_name': 'no such'}):
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix('_name')):
      corpus.encode_file(embedder, empty, tmp_path / 'o.npy', **wrong)
  with pytest.raises(ValueError, match=r'\.csv files are not read'):
    corpus.encode_file(embedder, tmp_path / 'a.csv', tmp_path / 'o.npy')


@pytest.mark.parametrize('name, data, says', [
    ('a.txt', b'a\n\xff\xfe\n', r'a\.txt:2: not UTF-8'),
    ('a.jsonl', b'{"text": "a"}\n{"text": "\xff"}\n', r'a\.jsonl:2: not UTF-8'),
    ('a.txt.gz', gzip.compress(os.urandom(3000).hex().encode())[:2000],
     'not a whole gzip file'),
    ('a.txt.gz', b'no gzip at all', 'not a whole gzip file'),
    ('a.jsonl', b'\n\n', 'is empty'),
])
def test_a_damaged_source_is_named_before_any_row_is_encoded(
    tmp_path, name, data, says):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=says):
    corpus._fingerprint(tmp_path / name, 'text')


def test_a_mark_in_front_and_blank_lines_are_no_text(tmp_path):
  for name, text in (('a.txt', '\ufeffone\ntwo'), (
      'a.jsonl', '\ufeff{"text": "one"}\n\n{"text": "two"}\n\n')):
    (tmp_path / name).write_text(text)
    assert list(corpus.read_texts(tmp_path / name)) == ['one', 'two']


@pytest.fixture(scope='module')
def unfinished(embedder, tmp_path_factory):
  """Makes work of nine rows of which six are done: (source, target)."""
  whole = embedder.encode([f'Text number {i}.' for i in range(ROWS)])
  folder = tmp_path_factory.mktemp('unfinished')

  def make(name):
    source, target = folder / f'{name}.txt', folder / f'{name}.npy'
    source.write_text(''.join(f'Text number {i}.\n' for i in range(ROWS)))
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
      _stop_after(embedder, 2, m)
      corpus.encode_file(embedder, source, target, part=3)
    return source, target

  return make, whole


def _edit(change):
  def write(partial, progress):
    progress.write_text(json.dumps(change(json.loads(progress.read_text()))))
  return write


@pytest.mark.parametrize('damage, outcome', after(3, [
    (lambda p, g: p.write_bytes(p.read_bytes()[:128 + 1536 * 4]), '2 rows|3 rows'),
    (lambda p, g: os.truncate(p, 128), '6 rows'), (lambda p, g: p.unlink(), '6 rows'),
    (lambda p, g: p.write_bytes(b'x' * 9 + p.read_bytes()[9:]), '6 rows'),
    (lambda p, g: p.write_bytes(
        p.read_bytes()[:6000] + b'\1' * 8 + p.read_bytes()[6008:]), '3 rows'),
    (lambda p, g: g.write_text('{"do'), ValueError),
    (lambda p, g: g.write_text('[]'), ValueError),
    (_edit(lambda d: d | {'done': 99}), ValueError),
    (_edit(lambda d: d | {'parts': [[-3, '']]}), ValueError),
    (_edit(lambda d: d | {'parts': [[99, 'a']]}), '99 rows'),
]), ids=range(10))
def test_damaged_work_is_computed_again_or_refused(
    embedder, unfinished, request, damage, outcome):
  make, whole = unfinished
  source, target = make(request.node.callspec.id)
  partial = target.with_name(target.name + '.partial')
  damage(partial, target.with_name(target.name + '.progress.json'))
  if outcome is ValueError:
    with pytest.raises(ValueError, match=r'progress\.json is damaged'):
      corpus.encode_file(embedder, source, target, part=3)
    vectors = corpus.encode_file(embedder, source, target, part=3, overwrite=True)
  else:
    with pytest.warns(UserWarning, match=f'({outcome}).*computed again'):
      vectors = corpus.encode_file(embedder, source, target, part=3)
  np.testing.assert_allclose(vectors, whole, atol=ROUNDING)


def test_a_full_disk_is_an_error_that_keeps_what_is_done(
    embedder, unfinished, monkeypatch):
  make, whole = unfinished
  source, target = make('full')

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  for broken in ('posix_fallocate', 'fsync'):
    with monkeypatch.context() as m, pytest.raises(
        OSError, match=r'full\.npy cannot be written \(No space left on device\)'):
      m.setattr(os, broken, full)
      corpus.encode_file(embedder, source, target, part=3)
  with monkeypatch.context() as m:
    calls = _stop_after(embedder, 9, m)
    vectors = corpus.encode_file(embedder, source, target, part=3)
  assert len(calls) == 1  # six of nine rows were kept
  np.testing.assert_allclose(vectors, whole, atol=ROUNDING)


def test_a_vector_that_the_file_cannot_hold_is_refused():
  batch = [text_rows.Text('a', '', 'f:1'), text_rows.Text('b', '', 'f:2')]
  with pytest.raises(ValueError, match='f:2: its vector is beyond float16'):
    corpus._stored(np.array([[1.0], [1e5]], np.float32), 'float16', batch)
  with pytest.raises(ValueError, match='f:1: its vector is not finite'):
    corpus._stored(np.array([[np.nan], [1]], np.float32), 'float32', batch)
