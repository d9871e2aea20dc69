"""Plain JSON is read as json reads it; the rest is refused in one sentence."""

import json

import pytest

from jaxembed.files import checked_json
from jaxembed.files.folder import BadCheckpoint


@pytest.mark.parametrize(('data', 'why'), [
    (b'', 'no plain JSON'), (b'{', 'no plain JSON'), (b'{}{}', 'no plain JSON'),
    (b'[]', r'holds \[\], not a JSON object'), (b'5', 'not a JSON object'),
    (b'\xef\xbb\xbf{}', 'no plain JSON'), ('{}'.encode('utf-16'), 'no JSON in UTF-8'),
    (b'{"a": "\xff"}', 'byte 7'), (b'{"a": NaN}', "'NaN' is no finite number"),
    (b'{"a": -Infinity}', 'no finite number'), (b'{"a": 1e400}', 'no finite number'),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
    (b'{"a": "\\ud800"}', 'half of a surrogate pair'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'no plain JSON'),
    (b'{"a": ' + b'[' * 101 + b']' * 101 + b'}', 'nests more than 100'),
    (b'{"a": ' + b'[' * 10**6, 'nests'),
    (b'{"a": [' + b'0,' * 6_000_000 + b'0]}', 'more than 5000000 values'),
])
def test_what_is_refused(data, why):
  with pytest.raises(BadCheckpoint, match=f'^settings.json .*{why}') as e:
    checked_json.parse(data, 'settings.json')
  assert '\n' not in str(e.value) and len(str(e.value)) < 300


def test_what_is_read(tmp_path):
  value = {'a': [1, 2.5, None, True, 'é\U0001f600'], 'b': {'c': {}}}
  for ascii_only in (True, False):
    (tmp_path / 'f.json').write_text(json.dumps(value, ensure_ascii=ascii_only))
    assert checked_json.read(tmp_path / 'f.json') == value
  assert checked_json.parse(b'[1]', 'x', list) == [1]
  assert checked_json.read(tmp_path / 'absent.json', absent={}) == {}
  with pytest.raises(BadCheckpoint, match='absent.json cannot be read'):
    checked_json.read(tmp_path / 'absent.json')
  (tmp_path / 'big.json').write_bytes(b' ' * 11 + b'{}')
  with pytest.raises(BadCheckpoint, match='more than the 12 bytes'):
    checked_json.read(tmp_path / 'big.json', limit=12)
