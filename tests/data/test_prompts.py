"""One rendering of prompts, the same for training and every evaluation."""

import json
import types

import numpy as np
import pytest

from jaxembed.config import EvalConfig, SourceConfig
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
