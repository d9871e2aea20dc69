"""Rows that someone damaged on purpose: examples, or a refusal in one sentence.

Whatever stands in a file of rows, it is read as texts that are there, or refused by a
message with the file (and line) or the source; never by an error of another kind.
"""

import contextlib
import csv
import gzip
import io
import json
import warnings

import numpy as np
import pytest

from jaxembed import config, data
from jaxembed.data import sources

_TEXTS = ('a', 'b c', 'q', 'p', 'n', '', ' ', '\n', '\t', '\r', 'x\r\ny', '"a', "'",
          '\u00a0', '\u200b', '\u2028', '\ufeff', '\ufeffa', '\0', '\x1a', '\ud800',
          '\U0001f600', 'e\u0301', '\u00e9', '[MASK]', '[PAD]', '{instruction}',
          'w ' * 400, 'x' * 3000, '1', '0.5', 'nan', 'query', 'positive', 'en', 'de',
          'query\tpositive')
_ODD = (None, True, False, 0, 1, -1, 2.5, 1e308, 10**400, float('nan'), float('inf'),
        [], [[]], {}, ['a', 'b'], ['a', None], [1], {'text': 'a'}, {'text': None},
        {'text': 'a', 'docid': 3, 'title': 'T'}, {'title': 'T', 'text': ''},
        {'text': 'a', 'docid': [1]}, {'id': 'x', 'text': 'c', '_id': True},
        {'a': {'b': ['c']}}, [0.5, 0.1], ['a'] * 40, [{'text': 'a'}, 'b'], *_TEXTS)
_KEYS = ('query', 'anchor', 'sentence1', 'positive', 'positives', 'pos', 'sentence2',
         'positive_passages', 'negative', 'negatives', 'neg', 'negative_passages',
         'negative_1', 'negative_2', 'negative_x', 'negative_\u0663', 'score', 'scores',
         'label', 'labels', 'similarity_score', 'pos_scores', 'neg_scores', 'prompt',
         'instruction', 'query_id', 'set', 'text', 'id', 'title', '')
_SHAPES = (
    {'query': 'q', 'positive': 'p'},
    {'anchor': 'q', 'positive': 'p', 'negative_1': 'n', 'negative_2': 'm'},
    {'sentence1': 'q', 'sentence2': 'p', 'score': 0.9},
    {'query': 'q', 'pos': ['p', 'r'], 'neg': ['n', 'm'], 'pos_scores': [1, 0.5],
     'neg_scores': [0.1, 0.2], 'prompt': 'find'},
    {'query_id': 3, 'query': 'q',
     'positive_passages': [{'docid': '7', 'title': 'T', 'text': 'p'}],
     'negative_passages': [{'docid': '8', 'title': '', 'text': 'n'}]},
    {'query': 'q', 'positive': 'p', 'negative': ['n'], 'score': [0.9, 0.2]},
    {'set': ['a', 'b', 'c']}, ['q', 'p'], ['q', ['p', 'r'], ['n', 'm']],
    {'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 3, 'instruction': 'i'})


class _Draw:
  """Choices of a seed."""

  def __init__(self, rng: np.random.Generator):
    self.rng, self.labels, self.score = rng, False, False

  def one(self, choices):
    return choices[self.rng.integers(len(choices))]

  def often(self, share: float) -> bool:
    return self.rng.random() < share

  def row(self, shape, i: int):
    """A row of a shape, its texts numbered, and often one thing wrong with it."""
    row = json.loads(json.dumps(shape))
    row = ([f'{row[0]} {i}', *row[1:]] if isinstance(row, list) else
           {k: f'{v} {i}' if k in ('query', 'anchor', 'sentence1', 'text') else v
            for k, v in row.items()})
    while self.often(0.06):
      odd = self.one(_ODD)
      if isinstance(row, list):
        row = [self.one([v, odd]) for v in row][:self.rng.integers(4)]
        break
      what = self.rng.integers(4)
      if what == 0 and row:
        del row[self.one(sorted(row))]
      elif what == 1 and row:
        row[self.one(sorted(row))] = odd
      else:
        row[self.one(_KEYS)] = odd
    return row

  def jsonl(self) -> bytes:
    shape = self.one(_SHAPES)
    self.labels, self.score = ('label' in shape, 'score' in shape and
                               isinstance(shape['score'], float))
    rows = [self.row(shape, i % 9) for i in range(self.rng.integers(1, 12))]
    if self.often(0.05):
      return json.dumps(rows, indent=self.one([None, 1])).encode()
    if self.often(0.1):
      rows[self.rng.integers(len(rows))] = self.one(_ODD)
    lines = [json.dumps(r, ensure_ascii=self.often(0.5)).encode(
        'utf-8', 'surrogatepass') for r in rows]
    return self.one([b'\n'] * 7 + [b'\r\n', b'\n\n', b',\n', b'\r']).join(lines)

  def tsv(self) -> bytes:
    first = self.one([['query', 'positive'], ['query', 'positive', 'negative'],
                      ['text', 'label'], ['sentence1', 'sentence2', 'score'],
                      ['en', 'de'], ['id', 'query', 'pos'],
                      self.one([['q', 'p'], ['a', 'a'], ['query']])])
    self.labels, self.score = 'label' in first, 'score' in first
    rows = [first] * self.often(0.9)
    rows += [[f'{c}{i}' if c != 'score' else '0.5' for c in first]
             for i in range(self.rng.integers(0, 10))]
    for _ in range(self.rng.integers(3) if rows else 0):
      row = list(self.one(rows))
      row[self.rng.integers(len(row))] = self.one(_TEXTS)
      rows[self.rng.integers(len(rows))] = row[:self.rng.integers(1, 5)]
    return self.one(['\n', '\n', '\r\n']).join(map('\t'.join, rows)).encode(
        'utf-8', 'surrogatepass')

  def csv(self) -> bytes:
    rows = [line.split('\t') for line in
            self.tsv().decode('utf-8', 'replace').splitlines() if line]
    text = io.StringIO()
    csv.writer(text, quoting=self.one([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
               lineterminator=self.one(['\n', '\r\n'])).writerows(rows)
    return text.getvalue().encode()

  def damaged(self, content: bytes) -> bytes:
    """Content with, now and then, other bytes, another encoding, or packed."""
    if content and self.often(0.1):
      at = self.rng.integers(len(content))
      content = content[:at] + self.one(
          [b'', b'\0', b'\xff', b'\n', b'\xef\xbb\xbf', b'"', b'\xed\xa0\x80',
           b'[' * 3000]) + content[at + self.rng.integers(2):]
    if self.often(0.1):
      content = b'\xef\xbb\xbf' + content
    if self.often(0.02):
      content = content.decode('utf-8', 'replace').encode('utf-16')
    if self.often(0.1):
      content = gzip.compress(content, 1)
      if self.often(0.3):
        at = self.rng.integers(len(content))
        content = content[:at] + content[at + 1:]
    return content

  def source(self, path, kind: str) -> config.SourceConfig:
    """Rules for rows, maybe such as do not go together."""
    rows = self.one(['same_label', 'label_text'] if self.labels ^ self.often(0.1) else
                    ['pairs', 'pairs', 'pairs', 'bm25'])
    rules = {'rows': rows, 'in_batch': rows != 'same_label'}
    if rows in ('pairs', 'bm25') and self.score ^ self.often(0.05):
      rules['min_score'] = 0.5
    for name, values in {
        'symmetric': (True,), 'limit': (1, 3),
        'columns': (('query', 'positive'), ('text', 'label'), ('a', 'b', 'c'),
                    ('sentence1', 'sentence2')),
        'query_prompt': ('{instruction}: ', 'ask: '),
        'header': (True, False) if kind != 'jsonl' else (None,),
        'on_bad_row': ('skip',)}.items():
      if self.often(0.1):
        rules[name] = self.one(values)
    if self.often(0.3) and '{' in rules.get('query_prompt', ''):
      rules['instructions'] = ('find it',)
    return config.SourceConfig(name='s', kind=kind, path=str(path), **rules)


def _leaves(value):
  """All texts and numbers of a row."""
  if isinstance(value, dict):
    if isinstance(value.get('text'), str):
      yield f'{value.get("title") or ""} {value["text"]}'.strip()
    value = value.values()
  if isinstance(value, str | int | float | None):
    yield value if isinstance(value, str) else str(value)
  else:
    for inner in value:
      yield from _leaves(inner)


def _read(cfg: config.SourceConfig, tokenizer, check_rows: int, negatives: int
          ) -> list[data.Example]:
  """All examples of a source that two batches can be made of."""
  stage = config.DataConfig(
      sources=[cfg], batch_size=4, num_negatives=negatives, query_lengths=(8,),
      passage_lengths=(8, 16), check_rows=check_rows, prefetch=0)
  found = iter(data.batches(stage, tokenizer, seed=0))
  for _ in range(2):
    batch, _ = next(found)
    assert batch.query.mask.any(1).all() and (batch.pairing.owner >= -1).all()
  rows = sources.load(cfg)
  return [rows[i] for i in range(len(rows))]


def _texts_are_of(content: bytes, kind: str, examples) -> bool:
  """Whether every text of the examples is one of the file's."""
  text = content.decode('utf-8-sig', 'replace')  # lines beyond `limit` may be bad
  if kind == 'csv':
    there = {cell for row in csv.reader(io.StringIO(text, newline='')) for cell in row}
  elif kind == 'tsv':
    there = {cell for line in text.split('\n')
             for cell in line.rstrip('\r').split('\t')}
  else:
    there = set()
    for line in text.split('\n'):
      with contextlib.suppress(ValueError, RecursionError):
        there.update(_leaves(json.loads(line)))
  return all(t in there for e in examples for t in (
      e.query, *(p.text for p in e.positives + e.negatives)))


def _fuzz(folder, tokenizer, seed: int, rounds: int) -> None:
  accepted = 0
  for i in range(rounds):
    draw = _Draw(np.random.default_rng((seed, i)))
    kind = draw.one(['jsonl', 'jsonl', 'tsv', 'csv'])
    plain = (draw.jsonl() if kind == 'jsonl' else draw.tsv() if kind == 'tsv' else
             draw.csv())
    content = draw.damaged(plain)
    packed = (content[:2] == b'\x1f\x8b' and draw.often(0.5)) or draw.often(0.02)
    file = folder / f'rows.{kind}{".gz" if packed else ""}'
    file.write_bytes(content)
    found = []
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = draw.source(file, kind)
        found = _read(cfg, tokenizer, draw.one([0, 0, 2, 100]), int(draw.one([0, 2])))
      accepted += 1
    except ValueError as e:
      said = str(e)
      assert '\n' not in said and len(said) < 900, said
      assert str(file) in said or "source 's'" in said or 'DataConfig' in said, said
    except Exception as e:
      raise AssertionError(f'seed {seed}, round {i}: {cfg} {content[:3000]!r}') from e
    finally:
      file.unlink()
    assert content != plain or _texts_are_of(content, kind, found), content[:3000]
  assert rounds // 5 < accepted < rounds, accepted


def test_random_rows(tmp_path, tokenizer):
  _fuzz(tmp_path, tokenizer, 0, 100)


@pytest.mark.slow
def test_many_random_rows(tmp_path, tokenizer):
  _fuzz(tmp_path, tokenizer, 1, 20_000)


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)
