"""Batches: a function of (seed, step), whole over hosts, true to their policies."""

import collections
import importlib.util
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxembed import data
from jaxembed.config import DataConfig, SourceConfig
from jaxembed.data import collate, sampling
from jaxembed.data.records import Example, Passage


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)


@pytest.fixture
def write(tmp_path):
  def write(name, rows):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return str(path)
  return write


def _rows(n, tag='', negatives=3):
  return [{'query': f'{tag} query {i}', 'pos': [f'{tag} yes {i}', f'{tag} also {i}'],
           'neg': [f'{tag} no {i} {k} ' + 'word ' * k for k in range(negatives)]}
          for i in range(n)]


def _config(write, **changes):
  settings = {
      'sources': [
          SourceConfig(name='a', path=write('a', _rows(10, 'a')), weight=3.0),
          SourceConfig(name='b', path=write('b', _rows(7, 'b', 1)), in_batch=False)],
      'batch_size': 8, 'num_negatives': 2, 'query_lengths': (16,),
      'passage_lengths': (8, 16, 32)}
  return DataConfig(**settings | changes)


def _take(n, *args, **kwargs):
  return list(itertools.islice(data.batches(*args, **kwargs), n))


def _same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('prefetch', [0, 3])
def test_resuming_at_a_step_gives_that_step(write, tokenizer, prefetch):
  cfg = _config(write, prefetch=prefetch)
  straight = _take(7, cfg, tokenizer, seed=5)
  for start in (1, 6):
    batch, info = _take(1, cfg, tokenizer, seed=5, start_step=start)[0]
    _same(batch, straight[start][0])
    assert info == straight[start][1] and info.step == start
  other = _take(1, cfg, tokenizer, seed=6)[0]
  assert other[1].rows != straight[0][1].rows


@pytest.mark.parametrize('homogeneous', [False, True])
@pytest.mark.parametrize('lengths', [(32,), (8, 16, 32)])
def test_hosts_together_hold_the_batch_of_one(write, tokenizer, homogeneous, lengths):
  cfg = _config(write, homogeneous=homogeneous, passage_lengths=lengths)
  whole = _take(3, cfg, tokenizer, seed=0)
  parts = [_take(3, cfg, tokenizer, seed=0, local_rows=range(2 * i, 2 * i + 2))
           for i in range(4)]
  for step in range(3):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(p[step][0] for p in parts))
    _same(joined, whole[step][0])
    assert {p[step][1].rows for p in parts} == {whole[step][1].rows}


@pytest.mark.parametrize('shards', [4, 8])
def test_hosts_together_hold_the_packed_batch_of_one(write, tokenizer, shards):
  cfg = _config(write, pack=40)
  whole = _take(3, cfg, tokenizer, seed=0, shards=shards)
  parts = [_take(3, cfg, tokenizer, seed=0, local_rows=range(2 * i, 2 * i + 2),
                 shards=shards) for i in range(4)]
  for step in range(3):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(p[step][0] for p in parts))
    _same(joined, whole[step][0])


def test_a_packed_batch_says_the_same_of_its_pairs(write, tokenizer):
  plain, packed = (
      _take(3, _config(write, pack=pack), tokenizer, seed=0) for pack in (0, 40))
  for (a, told), (b, also) in zip(plain, packed):
    _same(a.pairing, b.pairing)
    assert told.rows == also.rows and also.counts.padding < told.counts.padding
    real = a.pairing.owner >= 0
    assert b.tokens.mask.sum() == a.query.mask.sum() + a.passage.mask[real].sum()


@pytest.mark.parametrize('pack', [0, 40])
@pytest.mark.parametrize('lengths', [(32,), (8, 16, 32)])
def test_a_host_with_rows_far_apart_holds_those_of_the_batch(
    write, tokenizer, pack, lengths):
  cfg = _config(write, pack=pack, passage_lengths=lengths)
  (whole, _), = _take(1, cfg, tokenizer, seed=0, shards=4)
  mine = np.array([0, 1, 4, 5])
  (part, _), = _take(1, cfg, tokenizer, seed=0, shards=4, local_rows=mine)
  want = jax.tree.map(
      lambda x: x.reshape(4, -1, *x.shape[1:])[[0, 2]].reshape(-1, *x.shape[1:]), whole)
  _same(part, want)


@pytest.mark.parametrize('mine', [[0, 1, 2], [1, 2], [0, 1, 3, 2]])
def test_packed_rows_of_half_a_device_are_refused(write, tokenizer, mine):
  with pytest.raises(ValueError, match='whole devices, of 4 that share 8 rows'):
    _take(1, _config(write, pack=40), tokenizer, seed=0, shards=4, local_rows=mine)


def test_packed_rows_shorter_than_a_text_are_refused(write):
  with pytest.raises(ValueError, match='pack is 16.* may have 32'):
    _config(write, pack=16)


def test_the_parts_of_a_batch_fit_together(write, tokenizer):
  cfg = _config(write)
  for batch, info in _take(5, cfg, tokenizer, seed=1):
    pairing = batch.pairing
    assert batch.query.ids.shape == (8, 16)
    assert batch.passage.ids.shape[0] == len(pairing.owner) == 24
    assert pairing.owner.dtype == pairing.passage_id.dtype == np.int32
    for q, (name, row) in enumerate(info.rows):
      own = pairing.owner == q
      assert (own & pairing.is_positive).sum() == 1
      assert own.sum() == (3 if name == 'a' else 2)  # b has one negative a row
      assert pairing.query_id[q] == data.text_id(f'{name} query {row}')
      positive = pairing.passage_id[own & pairing.is_positive][0]
      assert positive in [data.text_id(f'{name} {w} {row}') for w in ('yes', 'also')]
      assert pairing.group[q] == 'ab'.index(name)
      assert pairing.in_batch[q] == (name == 'a')
      at = np.flatnonzero(own & pairing.is_positive)[0]
      words = tokenizer.encode([f'{name} yes {row}'], max_length=16).ids
      also = tokenizer.encode([f'{name} also {row}'], max_length=16).ids
      got = batch.passage.ids[at][batch.passage.mask[at]].tolist()
      assert got in (words.tolist(), also.tolist())
    absent = pairing.owner < 0
    np.testing.assert_array_equal(batch.passage.mask[absent].sum(1), 1)


def test_every_pass_shows_every_row_once_in_a_new_order(write, tokenizer):
  cfg = _config(write, sources=[SourceConfig(name='a', path=write('c', _rows(24)))])
  rows = [r for _, info in _take(6, cfg, tokenizer, seed=0) for _, r in info.rows]
  passes = rows[:24], rows[24:]
  assert sorted(passes[0]) == sorted(passes[1]) == list(range(24))
  assert passes[0] != passes[1]


def _order(sizes, sources, batch_size, **rules):
  return sampling.batches(
      sizes, DataConfig(sources=sources, batch_size=batch_size, **rules), 0)


def test_weights_hold_within_a_batch_or_over_batches():
  sources = [SourceConfig(name='a', path='x', weight=3.0),
             SourceConfig(name='b', path='y', weight=1.0)]
  blended = _order([5, 900], sources, 8)
  pure = _order([5, 900], sources, 8, homogeneous=True)
  for step in range(40):
    assert collections.Counter(g for g, _ in blended[step]) == {0: 6, 1: 2}
  groups = [{g for g, _ in pure[step]} for step in range(40)]
  assert all(len(g) == 1 for g in groups)
  assert sum(g == {0} for g in groups) == 30


@pytest.mark.parametrize('homogeneous', [True, False])
def test_a_batch_of_one_takes_every_row_in_turn(homogeneous):
  found = _order([5], [SourceConfig(name='a', path='x')], 1, homogeneous=homogeneous)
  assert len(found) and sorted(r for i in range(5) for _, r in found[i]) == [*range(5)]
  assert [len(found[i]) for i in (0, 10**9)] == [1, 1]


def test_a_source_keeps_its_order_whoever_stands_beside_it():
  a, b = SourceConfig(name='a', path='x'), SourceConfig(name='b', path='y')
  alone = _order([50], [a], 4)
  beside = _order([9, 50], [b, a], 8)
  for step in range(10):
    assert [r for g, r in beside[step] if g == 1] == [r for _, r in alone[step]]


def test_a_positive_is_never_its_own_rows_negative():
  """Mined files hold such rows; the loss would mask them, and they are counted."""
  rng = np.random.default_rng(0)
  source = SourceConfig(name='a', path='x')
  for _ in range(300):
    texts = [f't{i}' for i in range(6)]
    example = Example('q', tuple(Passage(t) for t in rng.choice(texts, 2)),
                      tuple(Passage(t) for t in rng.choice(texts, 5)))
    right = {p.text for p in example.positives}
    row = collate.choose(example, 0, source, 3, rng)
    assert row.passages[0] in right
    assert not right & set(row.passages[1:])
    usable = sum(n.text not in right for n in example.negatives)
    assert len(row.passages) == 1 + min(3, usable)
    assert row.dropped == 5 - usable


def test_instructions(write, tokenizer):
  """A list is drawn from, a row's own wins, '' leaves no prompt."""
  rows = [{'query': f'q{i}', 'positive': f'p{i}'} for i in range(20)]
  rows[3]['instruction'] = 'own'
  source = SourceConfig(name='a', path=write('i', rows), instructions=('one', 'two'),
                        query_prompt='{instruction}: ')
  examples = data.load(source, 100)
  rng = np.random.default_rng(0)
  drawn = {collate.choose(examples[0], 0, source, 0, rng).query_prompt
           for _ in range(50)}
  assert drawn == {'one: ', 'two: '}
  row = collate.choose(examples[3], 0, source, 0, rng)
  assert (row.query_prompt, row.passage_prompt) == ('own: ', '')
  source.instructions = ()
  with pytest.raises(data.BadRow, match=r"i\.jsonl:1: a prompt .* asks for an {instr"):
    data.load(source, 100)


def test_prompts_are_read_but_not_pooled(minilm, write):
  tokenizer = data.Tokenizer.load(minilm, prompt_pooling='exclude')
  cfg = _config(write, num_negatives=0, sources=[SourceConfig(
      name='a', path=write('c', _rows(8, 'a')), query_prompt='search: ')])
  batch, _ = _take(1, cfg, tokenizer, seed=0)[0]
  held = batch.query.mask & ~batch.query.pool
  np.testing.assert_array_equal(held.sum(1), 3)  # [CLS] search :
  np.testing.assert_array_equal(batch.passage.pool, batch.passage.mask)


def test_symmetric_rows_serve_both_ways(write, tokenizer):
  cfg = SourceConfig(name='a', symmetric=True, path=write(
      's', [{'query': 'x', 'positive': 'y'}]))
  assert [(e.query, e.positives[0].text) for e in data.load(cfg)] == [
      ('x', 'y'), ('y', 'x')]


def test_lengths_of_a_source_and_cut_texts_are_counted(write, tokenizer):
  long = [{'query': 'word ' * 50, 'positive': 'word ' * 50}] * 8
  cfg = _config(write, num_negatives=0, sources=[SourceConfig(
      name='a', path=write('l', long), query_max_length=5)])
  batch, info = _take(1, cfg, tokenizer, seed=0)[0]
  np.testing.assert_array_equal(batch.query.mask.sum(1), 5)
  np.testing.assert_array_equal(batch.passage.mask.sum(1), 32)
  assert info.counts.truncated_queries == info.counts.truncated_passages == 8
  assert info.counts.padding == pytest.approx(1 - 8 * (5 + 32) / (8 * (16 + 32)))


def test_a_bad_row_shows_before_training(write, tokenizer):
  rows = _rows(50)
  rows[41]['pos'] = []
  cfg = _config(write, sources=[SourceConfig(name='a', path=write('bad', rows))])
  with pytest.raises(data.BadRow, match=r"bad\.jsonl:42: field 'pos' is empty"):
    data.batches(cfg, tokenizer, seed=0)
  cfg.check_rows = 0
  data.batches(cfg, tokenizer, seed=0)


def test_mistakes_in_the_mixture(write, tokenizer):
  with pytest.raises(ValueError, match=r'not a multiple of 3 devices.*6 or 9'):
    data.batches(_config(write), tokenizer, seed=0, shards=3)
  with pytest.raises(ValueError, match='texts of 600 tokens, but the tokenizer'):
    data.batches(_config(write, passage_lengths=(600,)), tokenizer, seed=0)
  with pytest.raises(ValueError, match='sources is empty'):
    data.batches(DataConfig(), tokenizer, seed=0)
  with pytest.raises(data.BadRow, match=r"source 'e' .* has no rows"):
    data.load(SourceConfig(name='e', path=write('empty', [])))


@pytest.mark.parametrize('make, says', [
    (lambda: SourceConfig(name='a'), "kind 'jsonl' needs a path"),
    (lambda: SourceConfig(name='a', kind='xls', path='x'), "kind is 'xls'"),
    (lambda: SourceConfig(name='a', path='x', split='test'), 'has no splits'),
    (lambda: SourceConfig(name='a', path='x', weight=0), 'weight is 0'),
    (lambda: SourceConfig(name='a', path='x', columns=('q',)), 'columns is'),
    (lambda: SourceConfig(name='a', path='x', instructions=('i',)), 'no prompt has'),
    (lambda: DataConfig(query_lengths=(32, 16)), 'query_lengths is'),
    (lambda: DataConfig(batch_size=0), 'batch_size is 0; give 1 or more'),
    (lambda: DataConfig(sources=[SourceConfig(name='a', path='x')] * 2), "'a' twice"),
    (lambda: DataConfig(sources=[SourceConfig(name='a', path='x', num_negatives=3)]),
     'leaves room for 0'),
    (lambda: DataConfig(sources=[SourceConfig(name='a', path='x', in_batch=False)]),
     'would teach nothing'),
    (lambda: DataConfig(sources=[SourceConfig(name='a', path='x',
                                              query_max_length=64)]), 'exceeds'),
])
def test_mistakes_in_the_configuration(make, says):
  with pytest.raises(ValueError, match=says):
    make()


@pytest.mark.thorough
def test_the_blend_of_two_stages_has_negatives_of_its_own(shared_data, tokenizer):
  spec = importlib.util.spec_from_file_location(
      'two_stage_cpu', pathlib.Path(__file__).parents[2] / 'configs/two_stage_cpu.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  retrieval, blend = module.get_config(str(shared_data)).stages
  for batch, _ in _take(2, retrieval.data, tokenizer, seed=0):
    assert batch.pairing.in_batch.all()
  for batch, info in _take(3, blend.data, tokenizer, seed=0):
    pairing = batch.pairing
    assert not pairing.in_batch.any()
    few = {'imdb_cad', 'nli_triples'}  # two labels; triples
    for q, (name, _) in enumerate(info.rows):
      own = pairing.owner == q
      assert (own & pairing.is_positive).sum() == 1
      assert (own & ~pairing.is_positive).sum() == (1 if name in few else 3)
    assert len({name for name, _ in info.rows}) > 5


def test_real_sets_mix(shared_data, tokenizer):
  """JSONL pairs and triples, parallel text, scored pairs: one mixture."""
  train = shared_data / 'train'
  cfg = DataConfig(
      sources=[
          SourceConfig(name='nli', path=str(train / 'nli_triples.jsonl.gz')),
          SourceConfig(name='scifact',
                       path=str(train / 'scifact_claim_abstract.jsonl.gz')),
          SourceConfig(name='de', kind='tsv', symmetric=True, header=True,
                       path=str(train / 'parallel_en-de.tsv.gz')),
          SourceConfig(name='sts', kind='tsv', symmetric=True, min_score=4.0,
                       path=str(shared_data / 'sts/stsb/train.tsv'))],
      batch_size=16, num_negatives=1, query_lengths=(64,), passage_lengths=(128,),
      check_rows=1000)
  for batch, info in _take(5, cfg, tokenizer, seed=0):
    assert collections.Counter(name for name, _ in info.rows) == {
        'nli': 4, 'scifact': 4, 'de': 4, 'sts': 4}
    assert (batch.pairing.owner >= 0).sum() == 16 + 4  # negatives of nli alone
  scored = data.load(SourceConfig(name='sts', kind='tsv', min_score=4.0,
                                  path=str(shared_data / 'sts/stsb/train.tsv')))
  lines = (shared_data / 'sts/stsb/train.tsv').read_text('utf-8').splitlines()[1:]
  assert len(scored) == sum(float(line.split('\t')[0]) >= 4 for line in lines)
  with pytest.raises(data.BadRow, match=r'a score .* but no min_score'):
    data.load(SourceConfig(name='sts', kind='tsv',
                           path=str(shared_data / 'sts/stsb/train.tsv')), 1)
