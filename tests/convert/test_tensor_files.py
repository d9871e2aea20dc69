"""Safetensors headers from strangers, held against the format's own library."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxembed.convert import tensor_files
from jaxembed.convert.tensor_files import BadCheckpoint


def _file(path, header, body):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + body)
  return path


def _entry(dtype='F32', shape=(2,), offsets=(0, 8)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


_TWO = {'a': _entry(), 'b': _entry(offsets=(8, 16))}


def test_a_sound_file_is_read_as_the_library_reads_it(tmp_path):
  x = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'empty': np.zeros((0, 4)),
       'scalar': np.array(2.5, np.float16), 'ids': np.arange(3)}
  save_file(x, tmp_path / 'f.safetensors')
  found = tensor_files.read_header(tmp_path / 'f.safetensors')
  assert {k: (t.shape, t.dtype) for k, t in found.items()} == {
      k: (v.shape, v.dtype) for k, v in x.items()}
  for name in ('a', 'empty', 'scalar'):
    np.testing.assert_array_equal(found[name].read(), x[name])
  with pytest.raises(BadCheckpoint, match="'ids' is of type I64"):
    found['ids'].read()


@pytest.mark.parametrize(('header', 'why'), [
    ({'a': _entry(), 'b': _entry()}, "'b' begins at byte"),
    ({'a': _entry(), 'b': _entry(offsets=(4, 12))}, "'b' begins at byte"),
    ({'a': _entry(), 'b': _entry(offsets=(9, 17))}, "'b' begins at byte"),
    ({'a': _entry()}, 'truncated or corrupt'),
    ({'a': _entry(offsets=(0.0, 8.0))}, 'data_offsets'),
    ({'a': _entry(offsets=(-8, 0))}, 'data_offsets'),
    ({'a': _entry(offsets=(2**64, 2**64 + 8))}, 'data_offsets'),
    ({'a': _entry(offsets=(0, 4, 8))}, 'data_offsets'),
    ({'a': _entry(shape=(2.0,))}, 'the shape'),
    ({'a': _entry(shape=(True, 2))}, 'the shape'),
    ({'a': _entry(shape=(-2,))}, 'the shape'),
    ({'a': _entry(shape=(2, *[1] * 1000))}, 'the shape'),
    ({'a': _entry(shape=(2**32, 2**32), offsets=(0, 0))}, 'does not fill'),
    ({'a': _entry(dtype='F8_E4M3', shape=(8,))}, 'F8_E4M3'),
    ({'a': _entry(dtype=['F32'])}, 'of type'),
    ({'a': None}, 'not a tensor'), ({'a': 'x'}, 'not a tensor'), ([], 'not a JSON'),
    (b'{"a": %s, "a": %s}' % ((json.dumps(_entry()).encode(),) * 2), 'stands twice'),
    (b'{"a": ' + b'[' * 10**5 + b']' * 10**5 + b'}', 'nests'),
    (json.dumps(_TWO).encode('utf-16'), 'UTF-8'),
])
def test_headers_that_are_refused(tmp_path, header, why):
  file = _file(tmp_path / 'f.safetensors', header, bytes(16))
  with pytest.raises(BadCheckpoint, match=why) as e:
    tensor_files.read_header(file)
  assert str(file) in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.float16,
                                   ml_dtypes.bfloat16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, dtype, value):
  x = np.full((5, 3), np.finfo(np.float16).max if dtype is np.float16 else 1, dtype)
  x[4, 1] = value
  tensor_files.write(tmp_path / 'f', {'w': (x.dtype, x.shape)}, lambda _: x)
  w = tensor_files.read_header(tmp_path / 'f')['w']
  np.testing.assert_array_equal(w.read(0, 4), x[:4])
  with pytest.raises(BadCheckpoint, match="'w' holds NaN or Inf"):
    w.read()


def _mutate(rng, header):
  """`header` with one thing wrong, or, now and then, nothing."""
  name = rng.choice(sorted(header))
  key = rng.choice(['dtype', 'shape', 'data_offsets'])
  odd = [None, -1, 0, 1.0, True, 2**31, 2**63, 10**18, '', 'F16', 'I32', 'BOOL',
         'F8_E5M2', [], [0], [0, 0], [4, 2], [2, 2], [0, 8], [8, 16], [4, 12], [[1]],
         ['1'], {}]
  what = rng.integers(4)
  value = odd[rng.integers(len(odd))]
  if what == 0:
    header[name] = value
  elif what == 1:
    header[name][key] = value
  elif what == 2 and isinstance(header[name][key], list):
    header[name][key] = [value, *header[name][key][1:]]
  elif what == 3:
    header[f'{name}{value}'] = header.pop(name)
  return header


def _fuzz(tmp_path, seed, rounds):
  """What is accepted, the library accepts too, with the same tensors."""
  rng, accepted = np.random.default_rng(seed), 0
  for _ in range(rounds):
    header = _mutate(rng, json.loads(json.dumps(_TWO)))
    text, body = json.dumps(header).encode(), rng.normal(size=4).astype('f4').tobytes()
    if rng.random() < 0.3:  # a byte of the header changes, or goes
      at, byte = rng.integers(len(text)), bytes([rng.integers(256)])
      text = text[:at] + byte[:rng.integers(2)] + text[at + 1:]
    file = _file(tmp_path / 'f', text, body[:rng.choice([16, 16, 15, 0])])
    try:
      found = {k: t.read() for k, t in tensor_files.read_header(file).items()}
    except BadCheckpoint as e:
      assert '\n' not in str(e) and len(str(e)) < 400, text
      continue
    accepted += 1
    try:
      with safe_open(file, 'numpy') as f:
        wanted = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except SafetensorError as e:
      raise AssertionError(f'the library refuses {text}: {e}') from e
    assert {k: v.tobytes() for k, v in found.items()} == {
        k: v.tobytes() for k, v in wanted.items()}
  assert accepted > rounds // 50


def test_random_headers(tmp_path):
  _fuzz(tmp_path, 0, 300)


@pytest.mark.slow
def test_many_random_headers(tmp_path):
  _fuzz(tmp_path, 1, 100_000)
