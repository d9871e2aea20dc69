"""A corpus on disk: in order, resumed exactly, never half there."""

import gzip
import json

import numpy as np
import pytest

from jaxembed import corpus
from jaxembed.embedder import Embedder

ROWS = 9
# Batches of other neighbours: only the order of sums differs.
ROUNDING = 2e-6


@pytest.fixture(scope='module')
def embedder(minilm):
  return Embedder.load(minilm)


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
                               dtype='float16', truncate_dim=32)
  assert vectors.dtype == np.float16 and vectors.shape == (ROWS, 32)
  # Half precision keeps 11 bits of numbers below 1.
  np.testing.assert_allclose(np.linalg.norm(
      vectors.astype(np.float32), axis=-1), 1, atol=1e-3)


def test_lines_of_a_gzipped_text_file(tmp_path):
  file = tmp_path / 'texts.txt.gz'
  file.write_bytes(gzip.compress('one\r\n\nthree\u2028still three\n'.encode()))
  assert list(corpus.read_texts(file)) == ['one', '', 'three\u2028still three']


@pytest.mark.parametrize('row, message', [
    ('{"body": "a"}', r"texts.jsonl:2: field 'text' holds no text.*body"),
    ('{"text": 3}', r"texts.jsonl:2: field 'text' holds no text"),
    ('[1]', 'texts.jsonl:2.*list'),
    ('{"text": ', 'texts.jsonl:2: not a JSON object'),
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
