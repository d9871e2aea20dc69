"""Who is whose negative, told from the tokens themselves and not from ids."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from jaxembed import config, data, types
from jaxembed.config import DataConfig, SourceConfig
from jaxembed.data.text_ids import text_ids
from jaxembed.losses import masks
from tests.helpers.tiers import after

# Texts that are one to the tokenizer, in several spellings, and others.
TEXTS = ('Rice', 'rice', ' rice  ', 'caf\u00e9', 'cafe\u0301', 'CAFE', 'old red cat',
         'Old  Red CAT', 'dog', 'a b c d e f g h i', 'a b c d e f g h j')


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)


def _tokens(tokens: types.Tokens, i):
  return tuple(tokens.ids[i][tokens.mask[i]].tolist())


def _source(path, rows, **rules):
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return SourceConfig(name='s', path=str(path), **rules)


def _visible(pairing) -> np.ndarray:
  """[Q,C], true where the loss takes a passage for a negative of a query."""
  lay = masks.layout(pairing, config.LossConfig())
  equal = np.any([np.asarray(a)[:, None] == np.asarray(b)[None]
                  for a, b in zip(lay.row.ids, lay.col.ids)], axis=0)
  return ~equal & (pairing.owner >= 0)


def _drawn(rng) -> list[dict]:
  """Rows of few texts, some with ids of their own."""
  def passages(low, high):
    texts = rng.choice(TEXTS, rng.integers(low, high + 1)).tolist()
    return [t if rng.random() < 0.5 else {'text': t, 'docid': int(rng.integers(9))}
            for t in texts]
  return [{'query': str(rng.choice(TEXTS)), 'pos': passages(1, 3),
           'neg': passages(0, 3)} for _ in range(rng.integers(2, 7))]


def test_answers_in_more_rows_than_there_is_room_for_are_told(tmp_path, tokenizer):
  rows = [{'query': 'Rice', 'positive': f'answer {i}'} for i in range(12)]
  rows += [{'query': f'q {i}', 'positive': f'answer {i}'} for i in range(12)]
  rows.append({'query': 'alone', 'pos': ['a', 'b']})
  cfg = DataConfig(sources=[_source(tmp_path / 'r.jsonl', rows)], batch_size=16,
                   query_lengths=(8,), passage_lengths=(8,), prefetch=0)
  mixture = data.open_mixture(cfg)
  assert mixture.known == 8 and list(mixture.sources[0].seen.answers) == ['Rice']
  (note,) = mixture.notes()
  assert 'one of them 12; 8 at a time' in note and 'known_positives' in note
  for room in (11, 3):  # those that stand in the batch take the places first
    mixture = data.open_mixture(dataclasses.replace(cfg, known_positives=room))
    batch, info = next(data.batches(mixture, tokenizer, seed=0))
    visible, at = _visible(batch.pairing), [i for _, i in info.rows]
    for q in [q for q, i in enumerate(at) if i < 12]:
      here = {i % 12 for i in at if i < 24} - {at[q]}
      shown = {at[c] % 12 for c in np.flatnonzero(visible[q]) if at[c] < 24}
      assert len(shown) <= max(0, len(here) - room) and (room < 11 or not shown)


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('prompt', ['', 'ask: '])
@pytest.mark.parametrize('seed', after(2, range(8)))
def test_no_known_positive_of_a_row_is_its_negative(
    tmp_path, tokenizer, seed, prompt, hosts):
  rng = np.random.default_rng(seed)
  rows, negatives = _drawn(rng), int(rng.integers(3))
  source = _source(tmp_path / 'r.jsonl', rows, query_prompt=prompt)
  cfg = DataConfig(sources=[source], batch_size=4, num_negatives=negatives,
                   query_lengths=(12,), passage_lengths=(10,), prefetch=0)
  mixture = data.open_mixture(cfg)
  parts = [data.batches(mixture, tokenizer, seed=0,
                        local_rows=range(4 // hosts * h, 4 // hosts * (h + 1)))
           for h in range(hosts)]

  def read(texts, length):
    found = tokenizer.encode(texts, max_length=length)
    return [tuple(found.take([i]).ids.tolist()) for i in range(len(texts))]

  for step in itertools.islice(zip(*parts), 3):
    batch = jax.tree.map(lambda *x: np.concatenate(x), *(b for b, _ in step))
    visible = _visible(batch.pairing)
    said = [_tokens(batch.passage, c) for c in range(len(batch.pairing.owner))]
    for q, (_, i) in enumerate(step[0][1].rows):
      asked = read([rows[i]['query']], 12)
      # Rows with the same query tell of each other's positives.
      plain = [p if isinstance(p, str) else p['text'] for row in rows
               if read([row['query']], 12) == asked for p in row['pos']]
      known = {*read(plain, 10), *asked}
      for c in np.flatnonzero(visible[q]):
        assert said[c] not in known, (q, c)


@pytest.mark.parametrize('prompts', [('', ''), ('ask: ', ''), ('ask: ', 'say it: ')])
def test_ids_are_equal_where_the_model_reads_the_same(tokenizer, prompts):
  """Whatever stands in front, for queries and passages of one length."""
  texts = [*TEXTS, *('word ' * 40 + t for t in TEXTS)]
  room = 30
  sides = []
  for prompt in prompts:
    length = room + (tokenizer.count(prompt) if prompt else 0)
    found = tokenizer.encode(texts, prompt, max_length=length)
    sides.append(text_ids(tokenizer, texts, [prompt] * len(texts),
                          [length] * len(texts), found))
  alone = tokenizer.encode(texts, max_length=room)
  read = [tuple(alone.take([i]).ids.tolist()) for i in range(len(texts))]
  same = [[a == b for b in read] for a in read]
  for a, b in itertools.product(sides, repeat=2):
    np.testing.assert_array_equal(a[:, None] == b[None], same)
  assert 1 < len(set(read)) < len(texts)


def test_a_document_id_makes_texts_one(tmp_path, tokenizer):
  rows = [{'query': 'q a', 'pos': [{'docid': 7, 'text': 'the short form'}]},
          {'query': 'q b', 'pos': ['other'],
           'neg': [{'docid': '7', 'title': 'T', 'text': 'the short form, longer'}]}]
  mixture = data.open_mixture(DataConfig(
      sources=[_source(tmp_path / 'r.jsonl', rows)], batch_size=2, num_negatives=1,
      query_lengths=(16,), passage_lengths=(16,), prefetch=0))
  batch, info = next(data.batches(mixture, tokenizer, seed=0))
  (q,) = (q for q, (_, i) in enumerate(info.rows) if i == 0)
  assert batch.pairing.known is None
  negative = np.flatnonzero(~batch.pairing.is_positive & (batch.pairing.owner >= 0))
  assert not _visible(batch.pairing)[q, negative].any()
  assert _visible(batch.pairing)[1 - q, negative].all()
  assert any('1 ids stand for several texts' in note for note in mixture.notes())


def test_scores_and_temperatures_travel_with_their_texts(tmp_path, tokenizer):
  rows = [{'query': f'q {i}', 'pos': [f'p {i}'], 'pos_scores': [i],
           'neg': [f'n {i} {k}' for k in range(i % 3)],
           'neg_scores': [i + k / 4 for k in range(i % 3)]} for i in range(8)]
  cfg = DataConfig(
      sources=[_source(tmp_path / 'r.jsonl', rows, temperature=0.02)], batch_size=4,
      num_negatives=2, query_lengths=(8,), passage_lengths=(8,), prefetch=0)
  batch, info = next(data.batches(cfg, tokenizer, seed=0))
  want = np.full((4, 3), np.nan, np.float32)
  for q, (_, i) in enumerate(info.rows):
    scores = rows[i]['pos_scores'] + rows[i]['neg_scores']
    want[q, :len(scores)] = scores
  np.testing.assert_array_equal(batch.pairing.score, want.ravel())
  np.testing.assert_array_equal(batch.pairing.temperature, np.float32([0.02] * 4))
  bare, _ = next(data.batches(DataConfig(
      sources=[_source(tmp_path / 's.jsonl', [{'query': 'q', 'pos': 'p'}])],
      batch_size=2, prefetch=0), tokenizer, seed=0))
  assert bare.pairing.score is bare.pairing.temperature is bare.pairing.known is None


def test_a_later_row_with_more_positives_says_what_to_set(tmp_path, tokenizer):
  rows = [{'query': f'q {i}', 'pos': ['p'] if i < 19 else ['p', 'r', 's']}
          for i in range(20)]
  source = _source(tmp_path / 'r.jsonl', rows)
  settings = {'sources': [source], 'batch_size': 20, 'prefetch': 0}
  with pytest.raises(data.BadRow, match=r'(?s)r\.jsonl:20: 3 positives, .*'
                                        'known_positives to 2 or more'):
    next(data.batches(DataConfig(**settings, check_rows=2), tokenizer, seed=0))
  for more in ({}, {'known_positives': 2, 'check_rows': 2}):
    batch, _ = next(data.batches(DataConfig(**settings, **more), tokenizer, seed=0))
    assert batch.pairing.known.shape == (20, 2)
    assert ((batch.pairing.known >= 0).sum(1) == 2).sum() == 1


def test_texts_of_a_set_take_turns(tmp_path, tokenizer):
  source = _source(tmp_path / 'r.jsonl', [{'set': ['one', 'two', 'three']}] * 4)
  cfg = DataConfig(sources=[source], batch_size=4, prefetch=0)
  words = [tuple(tokenizer.encode([w], max_length=9).ids.tolist())
           for w in ('one', 'two', 'three')]
  seen = set()
  for batch, _ in itertools.islice(data.batches(cfg, tokenizer, seed=0), 10):
    for i in range(4):
      pair = _tokens(batch.query, i), _tokens(batch.passage, i)
      assert set(pair) <= set(words) and pair[0] != pair[1]
      seen.add(pair)
    assert not _visible(batch.pairing).any()  # all are known to answer all
  assert len(seen) == 6
