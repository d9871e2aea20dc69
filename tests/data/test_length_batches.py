"""Batches of few shapes: everything once, little padding, shapes reused."""

import gzip
import json

import numpy as np
import pytest

from jaxembed.data.length_batches import length_batches, padding_share, round_up
from jaxembed.data.tokenise import Tokenizer
from tests.helpers.tiers import after

LENGTHS = {
    'one': [7],
    'equal': [12] * 100,
    'all': list(range(1, 257)),
    'skewed': np.random.default_rng(0).geometric(0.05, 3000).clip(1, 256).tolist(),
    'two ends': [3] * 500 + [256] * 3,
}


def _shapes(plan):
  return {(rows, length) for _, rows, length in plan}


@pytest.mark.parametrize('name', LENGTHS)
@pytest.mark.parametrize('multiple', [1, 8])
def test_every_text_once_and_it_fits(name, multiple):
  lengths = np.array(LENGTHS[name])
  plan = length_batches(lengths, 32, 256, row_multiple=multiple)
  seen = np.concatenate([i for i, _, _ in plan])
  np.testing.assert_array_equal(np.sort(seen), np.arange(len(lengths)))
  for indices, rows, length in plan:
    assert 0 < len(indices) <= rows and rows % multiple == 0
    assert lengths[indices].max() <= length <= 256
    assert rows * length <= max(64 * 32, multiple * length)
  assert len(_shapes(plan)) <= 10
  assert len(_shapes(plan)) == len({length for _, _, length in plan})


def test_the_same_texts_give_the_same_batches():
  first, second = (length_batches(LENGTHS['skewed'], 32, 256) for _ in range(2))
  for (a, *b), (c, *d) in zip(first, second):
    np.testing.assert_array_equal(a, c)
    assert b == d


@pytest.mark.parametrize('file, field', after(2, [
    ('sts/stsb/test.tsv', 1), ('classification/banking77/test.jsonl', 'text'),
    ('classification/imdb_cad/train.jsonl', 'text'),
    ('retrieval/scifact/corpus.jsonl.gz', 'text'),
    ('train/wordnet_definition_word.jsonl.gz', 'query')]))
@pytest.mark.parametrize('batch_size', [32, 64])
def test_padding_on_real_text_is_at_most_a_tenth(
    shared_data, minilm, file, field, batch_size):
  """The tenth is the product's promise."""
  raw = (shared_data / file).read_bytes()
  lines = (gzip.decompress(raw) if file.endswith('.gz') else raw).decode().splitlines()
  texts = ([line.split('\t')[field] for line in lines[1:]] if isinstance(field, int)
           else [json.loads(line)[field] for line in lines])
  lengths = Tokenizer.load(minilm).encode(texts[:3000], max_length=256).lengths
  plan = length_batches(lengths, batch_size, 256)
  assert padding_share(lengths, plan) <= 0.10
  assert len(_shapes(plan)) <= 10


def test_later_calls_reuse_shapes():
  rng = np.random.default_rng(1)
  known, new = set(), []
  for _ in range(8):
    lengths = rng.normal(30, 10, 3000).astype(int).clip(3, 60)
    plan = length_batches(lengths, 32, 256, known=known)
    assert padding_share(lengths, plan) <= 0.10
    new.append(len(_shapes(plan) - known))
    known |= _shapes(plan)
  assert new[0] <= 10
  assert sum(new[1:]) <= 4, new
  # One short text is not worth a compilation.
  assert _shapes(length_batches([9], 32, 256, known={(4, 16)})) == {(4, 16)}


def test_round_up_adds_at_most_an_eighth():
  for n in range(1, 5000):
    up = round_up(n)
    assert n <= up <= n * 9 / 8
    assert up >> max(up.bit_length() - 5, 0) << max(up.bit_length() - 5, 0) == up


def test_nothing_and_nonsense():
  assert length_batches([], 32, 256) == []
  assert padding_share([], []) == 0
  with pytest.raises(ValueError, match='0 to 300, outside 1 to max_length 256'):
    length_batches([0, 300], 32, 256)
  with pytest.raises(ValueError, match='batch_size 0'):
    length_batches([3], 0, 256)
