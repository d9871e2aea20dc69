"""A mixture: opened once, and told what it brings in vain."""

import dataclasses
import hashlib
import json
import re

import pytest

from jaxembed import data
from jaxembed.config import (
    Config,
    DataConfig,
    ModelConfig,
    Reads,
    SourceConfig,
    StageConfig,
)
from jaxembed.data import files, sources
from jaxembed.models import presets
from jaxembed.train import checks


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)


@pytest.fixture
def mixture(tmp_path):
  def mixture(lines, check_rows=100, negatives=0, **rules):
    path = tmp_path / 'r.jsonl'
    path.write_text(''.join(json.dumps(r) + '\n' for r in lines))
    return data.open_mixture(DataConfig(
        sources=[SourceConfig(name='s', path=str(path), **rules)], batch_size=2,
        num_negatives=negatives, check_rows=check_rows, prefetch=0))
  return mixture


def test_what_stages_share_is_opened_and_read_through_once(tmp_path, monkeypatch):
  path = tmp_path / 'r.jsonl'
  path.write_text('{"query": "q", "positive": "p"}\n' * 3)
  opened, read = [], []
  lines, digest = files.JsonLines, hashlib.file_digest
  monkeypatch.setattr(files, 'JsonLines', lambda *a: opened.append(a) or lines(*a))
  monkeypatch.setattr(hashlib, 'file_digest',
                      lambda *a: read.append(a) or digest(*a))
  stages = [StageConfig(data=DataConfig(sources=[
      SourceConfig(name='s', path=str(path), query_prompt=prompt, weight=weight)]))
      for prompt, weight in (('', 1.0), ('ask: ', 2.0))]
  first, second = data.open_stages(stages)
  assert first.sources[0].rows is second.sources[0].rows
  assert (first.sizes, second.cfg.sources[0].query_prompt) == ((3,), 'ask: ')
  assert first.fingerprints == second.fingerprints == {
      's': data.fingerprint(stages[0].data.sources[0])}
  assert len(opened) == 2 and len(read) == 2  # one of each is the line above


@pytest.mark.parametrize('more, rules, says', [
    ({'neg': ['n', 'm']}, {}, r'3 of 3 rows .* hard negatives \(up to 2\).*num_neg'),
    ({'neg': ['n']}, {'negatives': 3}, 'at most 1 hard negatives, and .*=3 makes room'),
    ({'prompt': 'find'}, {'query_prompt': 'q: '}, '3 of 3 .* no template asks for it'),
    ({}, {'rows': 'bm25'}, "rows='bm25' finds hard negatives, and num_negatives=0"),
])
def test_what_nothing_uses_is_told(mixture, more, rules, says):
  found = mixture([{'query': f'q {i}', 'pos': [f'p {i}']} | more for i in range(3)],
                  **rules)
  (note,) = found.notes()
  assert note.startswith("source 's': ")
  assert re.search(says, note)


def test_scores_are_used_or_refused(mixture, minilm):
  """Whatever field they stand in, where they come late too; left out when asked."""
  bare = {'query': 'q', 'pos': ['p'], 'neg': ['n']}
  for more in ({'pos_scores': [1], 'neg_scores': [0]}, {'neg_scores': [0.5]},
               {'score': [0.9, 0.1]}, {'label': 0.3}):
    rows = [bare | more] * 3
    with pytest.raises(ValueError, match="source 's': 3 of 3 rows read bring scores .*"
                       "distill_kl.*score_column=''"):
      mixture(rows, negatives=1).check_scores(Reads())
    mixture(rows, negatives=1).check_scores(Reads(scores=1, alone=False))
    left = mixture(rows, negatives=1, score_column='')
    left.check_scores(Reads())
    assert not left.scored and left.notes() == []
  late = mixture([bare, bare | {'pos_scores': [1]}], check_rows=1, negatives=1)
  late.check_scores(Reads())
  with pytest.raises(data.BadRow, match=r"r\.jsonl:2: the row brings scores, .*check_"):
    next(data.batches(late, data.Tokenizer.load(minilm), seed=0))


def test_quotation_marks_that_stay_are_told(tmp_path):
  file = tmp_path / 'r.tsv'
  source = SourceConfig(name='s', kind='tsv', path=str(file))
  for queries, told in ((('"a"', '"b"', 'c'), 1), (('"a" or "b', 'b', '"c"'), 0)):
    file.write_text('query\tpositive\n' + ''.join(f'{q}\tp\n' for q in queries))
    notes = data.open_mixture(DataConfig(sources=[source], batch_size=3)).notes()
    assert len(notes) == told
    assert all('2 of 3 rows read have a query in quotation' in n for n in notes)


def test_ordinary_rows_bring_nothing_in_vain(mixture):
  assert mixture([{'query': 'q', 'pos': ['p'], 'neg': ['n']}] * 2, negatives=1
                 ).notes() == []
  scored = mixture([{'query': 'q', 'pos': ['p'], 'neg': ['n'], 'pos_scores': [1],
                     'neg_scores': [0]}] * 2, negatives=1)
  assert scored.scored and scored.notes(Reads(scores=2)) == []
  assert scored.notes(None) == []
  scored.check_scores()


@pytest.mark.parametrize('more, negatives, says', [
    ({}, 1, "of 2 rows read none has two with scores.*another LossConfig.name"),
    ({'pos_scores': [1]}, 1, 'none has two with scores'),
    ({'pos_scores': [1], 'neg_scores': [0]}, 0, 'num_negatives=0 leaves it its pos')])
def test_a_loss_by_scores_is_refused_where_none_can_be_compared(
    mixture, more, negatives, says):
  found = mixture([{'query': 'q', 'pos': ['p'], 'neg': ['n']} | more] * 2,
                  negatives=negatives)
  with pytest.raises(ValueError, match=f"source 's': .*{says}"):
    found.check_scores()


def test_rows_that_a_loss_by_scores_learns_nothing_from_are_told(mixture):
  found = mixture([
      {'query': 'q', 'pos': ['p'], 'neg': ['n']},
      {'query': 'r', 'pos': ['s'], 'neg': ['m'], 'pos_scores': [1], 'neg_scores': [0]}],
      negatives=1, symmetric=True)
  found.check_scores()
  few, swapped = found.notes(Reads(scores=2))
  assert '1 of 2 rows read have fewer than two passages' in few
  assert 'the other way round have no scores' in swapped


def test_a_loss_of_the_callers_own_reads_what_it_likes(mixture):
  scored = mixture([{'query': 'q', 'pos': ['p'], 'pos_scores': [1]}] * 2)
  cfg = Config(stages=[StageConfig(data=scored.cfg)])
  model = ModelConfig(backbone=dataclasses.replace(
      presets.tiny('bert'), max_positions=128))
  told = [list(checks.notes(cfg, model, [scored], loss)) for loss in (None, object())]
  assert [any('scores of a teacher' in note for note in t) for t in told] == [
      True, False]


@pytest.mark.parametrize('negative', [None, '', 'p'])
def test_rows_that_can_teach_nothing_are_refused(mixture, negative):
  row = {'query': 'q', 'positive': 'p', 'negative': negative}
  rules = {'in_batch': False, 'negatives': 1}
  with pytest.raises(ValueError, match='in_batch off, and none of the 2 rows read'):
    mixture([row] * 2, **rules)
  (note,) = mixture([row, row | {'negative': 'n'}], **rules).notes()
  assert '1 of 2 rows read bring no hard negative, and with in_batch off' in note


def test_only_rows_to_be_checked_can_stop_a_run_at_its_start(mixture):
  rows = [{'query': 'q', 'pos': ['p', 'r']}, {'query': 'q'}]
  with pytest.raises(data.BadRow, match=r'r\.jsonl:2: no positive'):
    mixture(rows)
  assert mixture(rows, check_rows=0).known == 1


def test_every_stage_asks_for_its_own_instructions(tmp_path):
  path = tmp_path / 'r.jsonl'
  path.write_text('{"query": "q", "positive": "p"}\n')
  stages = [StageConfig(data=DataConfig(sources=[
      SourceConfig(name='s', path=str(path), query_prompt=prompt)]))
      for prompt in ('', '{instruction}: ')]
  with pytest.raises(data.BadRow, match=r'r\.jsonl:1: a prompt of source'):
    data.open_stages(stages)


@pytest.mark.parametrize('rules, says', [
    ({'query_prompt': 'word ' * 30}, 'query_prompt .* take 32 tokens of the 32'),
    ({'passage_prompt': '{instruction}', 'instructions': ('a', 'word ' * 200)},
     'passage_prompt .* take 202 tokens of the 128'),
    ({'query_prompt': 'a b c', 'query_max_length': 5}, 'take 5 tokens of the 5'),
    ({'query_max_length': 2}, 'take 2 tokens of the 2'),
])
def test_a_prompt_that_leaves_no_room_is_refused_at_the_start(
    mixture, tokenizer, rules, says):
  found = mixture([{'query': 'q', 'pos': ['p']}] * 2, **rules)
  with pytest.raises(ValueError, match=rf"source 's': .*{says}"):
    data.batches(found, tokenizer, seed=0)


def test_a_rows_own_instruction_that_leaves_no_room_names_the_row(mixture, minilm):
  found = mixture([{'query': 'q', 'pos': ['p'], 'prompt': 'word ' * n}
                   for n in (1, 99)], query_prompt='{instruction}')
  tokenizer = data.Tokenizer.load(minilm, prompt_pooling='exclude')
  with pytest.raises(data.BadRow, match=r'r\.jsonl:2: .* leaves no token to pool'):
    next(data.batches(found, tokenizer, seed=0))


def test_such_a_row_is_skipped_where_bad_rows_are(mixture, minilm):
  found = mixture([{'query': f'q {n}', 'pos': ['p'], 'prompt': 'word ' * n}
                   for n in (1, 99)], query_prompt='{instruction}', on_bad_row='skip')
  tokenizer = data.Tokenizer.load(minilm, prompt_pooling='exclude')
  batch, info = next(data.batches(found, tokenizer, seed=0))
  assert sorted(row for _, row in info.rows) == [0, 1]
  assert info.counts.skipped_rows == 1 and batch.query.pool.any(1).all()


def test_a_sample_is_spread_evenly():
  for size, count in ((10, 3), (10, 10), (10, 99), (0, 5)):
    places = sources.spread(size, count)
    assert len(places) <= count and list(places[:1]) == [0][:size]
    assert set(range(size)) == {p + k for p in places for k in range(places.step)
                                if p + k < size}
