"""One rendering of prompts, the same for training and every evaluation."""

import collections
import itertools
import json
import types

import numpy as np
import pytest

from jaxembed import data
from jaxembed.config import DataConfig, EvalConfig, SourceConfig, StageConfig
from jaxembed.data import collate, prompts, sources
from jaxembed.evaluation import held_out


@pytest.mark.parametrize('template, instruction, want', [
    ('', '', ''), ('q: ', '', 'q: '), ('q: ', 'find', 'q: '),
    ('{instruction}: ', 'find', 'find: '), ('{instruction}: ', '', ''),
    ('{instruction} {instruction}', '{instruction}', '{instruction} {instruction}')])
def test_a_template_and_an_instruction(template, instruction, want):
  assert prompts.render(template, instruction) == want


class _Recorder:
  """Stands for a BatchRunner: keeps what it is given, in front of what."""

  def __init__(self, params, cfg, *_):
    self.cfg, self.report = cfg, types.SimpleNamespace(truncated=0)

  def vectors(self, texts, prompts, *_):
    self.seen.append([p + t for p, t in zip(prompts, texts, strict=True)])
    return np.eye(2, dtype=np.float32)[[len(t) % 2 for t in texts]]


@pytest.mark.parametrize('own', ['', 'mine'])
def test_held_out_texts_stand_behind_the_prompts_of_training(tmp_path, monkeypatch,
                                                             own):
  rows = [{'query': f'q{i}', 'positive': f'p{i}'} for i in range(4)]
  rows[2]['instruction'] = own
  file = tmp_path / 'rows.jsonl'
  file.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  source = SourceConfig(name='a', path=str(file), instructions=('find',),
                        query_prompt='{instruction}: ', passage_prompt='{instruction}|')
  monkeypatch.setattr(held_out, 'BatchRunner', _Recorder)
  monkeypatch.setattr(_Recorder, 'seen', [], raising=False)
  held_out.scorer(EvalConfig(source=source))(
      {}, types.SimpleNamespace(embedding_dim=2), None, None)
  rng = np.random.default_rng(0)
  trained = [collate.choose(e, 0, source, 0, rng) for e in sources.load(source)]
  want = {t for r in trained for t in (r.query_prompt + r.query,
                                       r.passage_prompt + r.passages[0])}
  assert {text for call in _Recorder.seen for text in call} == want
  assert not any('{' in text for text in want)
  assert len(_Recorder.seen) == 2  # queries, then documents, whatever their prompts


def test_held_out_rows_without_an_instruction_are_told(tmp_path):
  file = tmp_path / 'rows.jsonl'
  file.write_text('{"query": "q", "positive": "p"}\n')
  source = SourceConfig(name='a', path=str(file), query_prompt='{instruction}: ')
  with pytest.warns(UserWarning, match='1 of 1 rows have no .instruction.'):
    held_out.scorer(EvalConfig(source=source))


@pytest.fixture(scope='module')
def tokenizer(minilm):
  return data.Tokenizer.load(minilm)


_WORDS = ('cat', 'dog', 'fish', 'bird', 'house', 'tree', 'river', 'stone')
_ROWS = [{'query': f'what is {w}', 'positive': f'{w} is a word', 'neg': [f'no {w}'],
          'passage_prompt': 'text' if i % 2 else ''} for i, w in enumerate(_WORDS)]


def _batches(tokenizer, count=6, length=64, rows=_ROWS, **rules):
  cfg = DataConfig(
      sources=[SourceConfig(name='s', kind='memory', **rules)], batch_size=len(rows),
      num_negatives=1, query_lengths=(length,), passage_lengths=(16,), prefetch=0)
  mixture = data.open_mixture(cfg, given={'s': rows})
  return mixture, list(itertools.islice(
      data.batches(mixture, tokenizer, seed=1), count))


def _texts(tokenizer, tokens):
  return [tokenizer.words(ids[mask].tolist()) for ids, mask in zip(
      np.asarray(tokens.ids), np.asarray(tokens.mask))]


def test_templates_are_drawn_for_both_sides_and_the_first_is_stored(tokenizer):
  rules = dict(query_prompt='ask: ', query_prompts=('{instruction}: ', ''),
               passage_prompt='doc ', passage_prompts=('{instruction} - ',),
               instructions=('find', 'seek'))
  mixture, batches = _batches(tokenizer, **rules)
  again = _batches(tokenizer, **rules)[1]
  seen = {'query': set(), 'passage': set()}
  for (batch, info), (same, _) in zip(batches, again):
    for side, found in seen.items():
      tokens = getattr(batch, side)
      np.testing.assert_array_equal(tokens.ids, getattr(same, side).ids)
      found |= {text.split()[1] for text in _texts(tokenizer, tokens)}
    for text, (_, row) in zip(_texts(tokenizer, batch.passage)[::2], info.rows):
      if text.split()[1] not in ('doc', 'find', 'seek'):  # the row's own
        assert row % 2 and text.split()[1] == 'text'
  assert seen == {'query': {'ask', 'find', 'seek', 'what'},
                  'passage': {'doc', 'find', 'seek', 'text'}}
  stage = StageConfig(data=mixture.cfg)
  assert prompts.trained([stage]) == {'query': 'ask: ', 'document': 'doc '}


def test_examples_are_other_rows_and_the_mark_survives_the_cut(tokenizer):
  """Never the row's own pair; documents and ids of texts are as without examples."""
  long = {'query': 'very ' * 90 + 'long', 'positive': 'the end', 'neg': []}
  rows = [*_ROWS[:7], long]
  with_, without = (_batches(tokenizer, rows=rows, query_prompt='ask: ', **rules)
                    for rules in ({'in_context': 3, 'response': ' => '}, {}))
  mark, counts = ['=', '>', '[SEP]'], collections.Counter()
  for (batch, info), (plain, _) in zip(with_[1], without[1]):
    np.testing.assert_array_equal(batch.passage.ids, plain.passage.ids)
    keys = dict(zip((r for _, r in info.rows), batch.pairing.query_id.tolist()))
    others = dict(zip((r for _, r in info.rows), plain.pairing.query_id.tolist()))
    assert all(keys[r] == others[r] for r in range(7))
    for text, (_, row) in zip(_texts(tokenizer, batch.query), info.rows):
      words = text.split()
      assert words[-3:] == mark and len(words) <= 64
      own = rows[row]['query'] if row < 7 else 'very very very'
      *examples, last = text.split('ask : ')[1:]
      assert last.startswith(own)
      counts[len(examples)] += 1
      for example in examples:
        asked, answer = example.replace('[SEP]', '').split(' = > ')
        pair = asked.strip(), answer.strip()
        assert pair in [(r['query'], r['positive']) for r in rows]
        assert pair[0] != rows[row]['query']
  assert set(counts) == {0, 1, 2, 3}
  assert any('queries end in' in note for note in with_[0].notes())
