"""Laws of mixing: every row in its turn, shares as asked, one order for all hosts."""

import collections
import itertools
import json
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from jaxembed import data
from jaxembed.config import Config, DataConfig, SourceConfig, StageConfig
from jaxembed.data import choice, sampling
from jaxembed.data.records import Example, Passage
from jaxembed.data.text_ids import text_ids
from jaxembed.train.stages import with_epochs

_FEW = settings(max_examples=12, deadline=None, database=None)


@st.composite
def _mixtures(draw):
  """(sizes, DataConfig, seed) of up to four sources in any kind of mixture."""
  sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
  sources = [SourceConfig(
      name=f's{i}', path='-', weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
      cap=draw(st.sampled_from([0, 5])), task=draw(st.sampled_from(['', '', 't'])))
      for i in range(len(sizes))]
  batch = draw(st.sampled_from([1, 4, 8]))
  parts = draw(st.sampled_from(
      [{}, {'homogeneous': True}, *({'sub_batch': n} for n in (1, 2, 4)
                                    if batch % n == 0)]))
  return sizes, DataConfig(
      sources=sources, batch_size=batch, **parts,
      size_temperature=draw(st.sampled_from([0.0, 1.0, 3.0]))), draw(
          st.integers(0, 2**31))


def _drawn(sizes, cfg, seed, steps):
  order = sampling.batches(sizes, cfg, seed)
  return [order[step] for step in range(steps)]


@_FEW
@given(_mixtures())
def test_a_pass_through_a_source_shows_each_row_once(mixture):
  """No row comes again before all of its source have come."""
  sizes, cfg, _ = mixture
  steps = -(-60 // cfg.batch_size)
  seen = collections.defaultdict(list)
  for batch in _drawn(*mixture, steps):
    assert len(batch) == cfg.batch_size
    for source, row in batch:
      seen[source].append(row)
  for source, rows in seen.items():
    n = sizes[source]
    for start in range(0, len(rows), n):
      one = rows[start:start + n]
      assert len(set(one)) == len(one) and set(one) <= set(range(n))


@_FEW
@given(_mixtures(), st.integers(0, 10**6))
def test_a_batch_is_known_by_seed_and_step_alone(mixture, step):
  first, second = (sampling.batches(*mixture) for _ in range(2))
  assert first[step] == second[step]
  jumped = [first[step + k] for k in (2, 0, 1)]
  assert [jumped[i] for i in (1, 2, 0)] == [second[step + k] for k in range(3)]


@_FEW
@given(_mixtures())
def test_rows_that_stand_together_are_of_one_task(mixture):
  _, cfg, _ = mixture
  together = cfg.batch_size if cfg.homogeneous else cfg.sub_batch or 1
  for batch in _drawn(*mixture, 12):
    for start in range(0, len(batch), together):
      assert len({cfg.sources[g].task or cfg.sources[g].name
                  for g, _ in batch[start:start + together]}) == 1


@settings(max_examples=4, deadline=None, database=None)
@given(_mixtures())
def test_shares_are_weights_times_sizes(mixture):
  """By the formula in float64, over many batches, to within one part of a batch."""
  sizes, cfg, seed = mixture
  counted = [min(n, s.cap or n) for n, s in zip(sizes, cfg.sources)]
  power = 1 / cfg.size_temperature if cfg.size_temperature else 0.0
  wanted = np.array([s.weight * n**power for n, s in zip(counted, cfg.sources)])
  wanted /= wanted.sum()
  found = collections.Counter(
      g for batch in _drawn(sizes, cfg, seed, 120) for g, _ in batch)
  share = np.array([found[g] for g in range(len(sizes))]) / found.total()
  np.testing.assert_allclose(share, wanted, atol=0.04)
  assert sampling.epoch(sizes, cfg.sources) == sum(counted)


_TEXTS = st.lists(st.sampled_from('abcdefg'), min_size=1, max_size=4, unique=True)


@_FEW
@given(_TEXTS, st.lists(st.sampled_from('abcdefg'), max_size=6), st.integers(0, 4),
       st.sampled_from(['random', 'first']), st.integers(0, 9))
def test_negatives_are_drawn_from_what_is_no_positive(right, wrong, room, how, seed):
  example = Example('q', tuple(map(Passage, right)), tuple(map(Passage, wrong)))
  source = SourceConfig(name='s', path='-', negative_choice=how)
  row = choice.choose(example, 0, source, room, np.random.default_rng(seed))
  usable = [w for w in wrong if w not in right]
  assert row.passages[0] in right and set(row.known) == set(right) - {row.passages[0]}
  assert not set(row.passages[1:]) & set(right)
  assert len(row.passages) - 1 == min(room, len(usable)) == room - row.empty
  assert not collections.Counter(row.passages[1:]) - collections.Counter(usable)
  if how == 'first':
    assert list(row.passages[1:]) == usable[:room]


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)


@settings(max_examples=10, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from('mnop'), _TEXTS), min_size=4, max_size=8))
def test_positives_of_a_query_are_never_its_negatives(tokenizer, rows):
  """Whichever rows name them: each is the row's positive, or known and masked."""
  rows = [{'query': f'query {q}', 'pos': [f'text {t}' for t in texts]}
          for q, texts in rows]
  positives = collections.defaultdict(set)
  for row in rows:
    positives[row['query']] |= set(row['pos'])
  mixture = data.open_mixture(DataConfig(
      sources=[SourceConfig(name='s', kind='memory')], batch_size=len(rows),
      query_lengths=(8,), passage_lengths=(8,), prefetch=0), given={'s': rows})
  (batch, info), = itertools.islice(data.batches(mixture, tokenizer, seed=0), 1)
  pair = batch.pairing
  texts = [tokenizer.words(ids[mask][1:-1].tolist()) for ids, mask in zip(
      np.asarray(batch.passage.ids), np.asarray(batch.passage.mask))]
  for i, (_, row) in enumerate(info.rows):
    for c, text in enumerate(texts):
      own = pair.owner[c] == i
      told = pair.passage_id[c] in {
          *([] if pair.known is None else pair.known[i].tolist()),
          *pair.passage_id[(pair.owner == i) & pair.is_positive].tolist()}
      answers = {p.lower() for p in positives[rows[row]['query']]}
      assert (text in answers) == (told or bool(own)), (i, c, text)


def _several(tmp_path):
  """Sources of all kinds of draws, some of whose rows are bad."""
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(
      {'query': f'a {i}' if i % 5 else '', 'pos': [f'yes {i}', f'also {i}'],
       'neg': [f'no {i} {k}' for k in range(i % 4)]}) + '\n' for i in range(20)))
  (tmp_path / 'b.jsonl').write_text(''.join(json.dumps(
      {'text': f'b {i}', 'label': 'xyz'[i % 3]}) + '\n' for i in range(12)))
  return [
      SourceConfig(name='a', path=str(tmp_path / 'a.jsonl'), on_bad_row='skip',
                   query_prompt='{instruction}: ', instructions=('find', 'seek')),
      SourceConfig(name='b', path=str(tmp_path / 'b.jsonl'), rows='same_label',
                   in_batch=False, weight=2.0)]


@pytest.mark.parametrize('how', [{}, {'homogeneous': True}, {'sub_batch': 4}])
def test_one_and_four_hosts_see_the_same_batches(tmp_path, tokenizer, how):
  mixture = data.open_mixture(DataConfig(
      sources=_several(tmp_path), batch_size=8, num_negatives=2, query_lengths=(16,),
      passage_lengths=(16,), prefetch=0, **how))

  def batches(hosts, host):
    local = range(8 * host // hosts, 8 * (host + 1) // hosts)
    return itertools.islice(data.batches(
        mixture, tokenizer, seed=3, start_step=2, local_rows=list(local)), 4)

  skipped = 0
  for (whole, info), *parts in zip(batches(1, 0), *(batches(4, h) for h in range(4))):
    for _, other in parts:
      assert other.rows == info.rows
    assert sum(o.counts.skipped_rows for _, o in parts) == info.counts.skipped_rows
    skipped += info.counts.skipped_rows
    for side in ('query', 'passage'):
      for name in ('ids', 'mask', 'pool'):
        np.testing.assert_array_equal(
            getattr(getattr(whole, side), name),
            np.concatenate([getattr(getattr(p, side), name) for p, _ in parts]))
    np.testing.assert_array_equal(
        whole.pairing.owner, np.concatenate([p.pairing.owner for p, _ in parts]))
  assert skipped and not math.isnan(info.counts.padding)


@pytest.mark.parametrize('hosts, pack, examples', [
    (1, 0, 0), (4, 0, 0), (2, 16, 0), (2, 0, 2)])
def test_with_bad_rows_each_good_one_comes_once_an_epoch(
    tmp_path, minilm, hosts, pack, examples):
  """Rows that are no rows, and one whose prompt leaves its text no token: counted once
  an epoch, their places empty, whoever reads them; no other row takes them."""
  good = [{'query': f'ask {i}', 'pos': [f'yes {i}'], 'neg': [f'no {i}']}
          for i in range(11)]
  lines = [*map(json.dumps, good[:6]), '', '{"query": "x"', '[]', 'nothing',
           json.dumps({'query': 'y', 'pos': ['z'], 'prompt': 'word ' * 99}),
           *map(json.dumps, good[6:]), '{"query": "", "pos": ["a"]}']
  (tmp_path / 'r.jsonl').write_text('\n'.join(lines))
  source = SourceConfig(
      name='s', path=str(tmp_path / 'r.jsonl'), on_bad_row='skip',
      query_prompt='{instruction}', instructions=('find: ',), in_context=examples)
  pooled = data.Tokenizer.load(minilm, prompt_pooling='exclude')
  mixture = data.open_mixture(DataConfig(
      sources=[source], batch_size=4, num_negatives=1, query_lengths=(16,),
      passage_lengths=(16,), prefetch=0, pack=pack))
  assert mixture.sizes == (16,) and mixture.sources[0].seen.bad.count == 4

  seen, skipped, asked = collections.Counter(), 0, collections.Counter()
  for host in range(hosts):
    local = range(4 * host // hosts, 4 * (host + 1) // hosts)
    for batch, info in itertools.islice(data.batches(
        mixture, pooled, seed=3, local_rows=list(local), shards=hosts), 8):
      pair, skipped = batch.pairing, skipped + info.counts.skipped_rows
      asked.update(info.rows if host == 0 else ())
      for i, place in enumerate(local):
        own = np.flatnonzero(pair.owner == place)
        assert len(own) in (0, 2) and pair.in_batch[i] == bool(len(own))
        if len(own):
          seen[int(pair.passage_id[own[0]])] += 1
      assert pack or all(mask.any(1).all() for mask in batch.masks)
  wanted = pairing_ids(pooled, [row['pos'][0] for row in good])
  assert seen == dict.fromkeys(wanted, 2) and skipped == 2 * 5
  assert asked == dict.fromkeys([('s', k) for k in range(16)], 2)


def pairing_ids(tokenizer, texts):
  """Ids of texts without prompts, as batches have them."""
  found = tokenizer.encode(texts, max_length=16)
  return text_ids(tokenizer, texts, [''] * len(texts), [16] * len(texts),
                  found).tolist()


@pytest.mark.parametrize('hosts', [1, 4])
def test_a_hundred_bad_rows_end_a_run_and_none_good_lets_none_begin(
    tmp_path, tokenizer, hosts):
  (tmp_path / 'r.jsonl').write_text('{"query": "q", "pos": ["p"]}\n' + 'bad\n' * 400)
  mixture = data.open_mixture(DataConfig(
      sources=[SourceConfig(name='s', path=str(tmp_path / 'r.jsonl'),
                            on_bad_row='skip')],
      batch_size=8, query_lengths=(8,), passage_lengths=(8,), prefetch=0))
  local = list(range(8 // hosts))
  with pytest.raises(data.BadRow, match='104 rows one after the other cannot be used, '
                                        r'such as .*r\.jsonl:'):
    for last, _ in enumerate(data.batches(
        mixture, tokenizer, seed=0, local_rows=local)):
      assert last < 60
  assert last >= 11
  (tmp_path / 'r.jsonl').write_text('bad\n' * 3)
  with pytest.raises(data.BadRow, match=r"'s': none of the 3 .* first .*r\.jsonl:1"):
    data.open_mixture(mixture.cfg)


@pytest.mark.parametrize('rows, cap, epochs, steps, left', [
    (24, 0, 2, 6, 0), (27, 0, 1, 3, 3), (27, 0, 2, 6, 6), (27, 16, 1.5, 3, 0),
    (5, 0, 1, 1, 0)])
def test_epochs_are_whole_batches_and_what_is_left_is_told(
    rows, cap, epochs, steps, left):
  cfg = Config(stages=[StageConfig(epochs=epochs, data=DataConfig(
      batch_size=8, sources=[SourceConfig(name='s', kind='memory', cap=cap)]))])
  given = {'s': [{'query': f'q {i}', 'positive': 'p'} for i in range(rows)]}
  found, (line,) = with_epochs(cfg, given)
  assert found.stages[0].steps == steps
  assert (f'{left} rows make no whole batch' in line) == bool(left)
  batches = _drawn([rows], cfg.stages[0].data, 0, steps)
  counts = collections.Counter(row for batch in batches for _, row in batch)
  assert max(counts.values()) <= max(math.ceil(epochs), math.ceil(8 / rows))


def test_a_batch_of_more_rows_than_there_are_is_told():
  cfg = DataConfig(batch_size=8, sources=[SourceConfig(name='s', kind='memory')])
  given = {'s': [{'query': f'q {i}', 'positive': f'p {i}'} for i in range(5)]}
  (note,) = data.open_mixture(cfg, given=given).notes()
  assert 'takes about 8 of its rows, and there are 5' in note
