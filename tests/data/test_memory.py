"""Rows of a program's own: read like the same rows in a file, and known again."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from jaxembed import data
from jaxembed.config import DataConfig, SourceConfig, StageConfig
from jaxembed.data.records import BadRow
from jaxembed.train import loop
from tests.helpers import tiny_run

_ROWS = [{'query': f'frage {i} é', 'pos': [f'a {i}', f'b {i}'],
          'neg': [f'n {i}'] * (i % 3), 'neg_scores': [0.5] * (i % 3)}
         for i in range(6)]
_SOURCE = SourceConfig(name='mine', kind='memory')


def _frame(rows):
  return pytest.importorskip('pandas').DataFrame(rows, index=range(9, 9 + len(rows)))


_HOLDERS = {
    'list': lambda rows: rows,
    'columns': lambda rows: {k: [r[k] for r in rows] for k in rows[0]},
    'numpy': lambda rows: [r | {'pos': np.array(r['pos']), 'neg_scores': np.array(
        r['neg_scores'], np.float32)} for r in rows],
    'datasets': lambda rows: pytest.importorskip('datasets').Dataset.from_list(rows),
    'pandas': _frame,
    'series': lambda rows: pytest.importorskip('pandas').Series(
        rows, index=range(len(rows) - 1, -1, -1)),
    'polars': lambda rows: pytest.importorskip('polars').DataFrame(rows),
    'pyarrow': lambda rows: pytest.importorskip('pyarrow').Table.from_pylist(rows),
}


@pytest.mark.parametrize('holder', _HOLDERS)
def test_whatever_holds_rows_they_are_those_of_a_file(tmp_path, holder):
  file = tmp_path / 'r.jsonl'
  file.write_text(''.join(json.dumps(r) + '\n' for r in _ROWS))
  given = {'mine': _HOLDERS[holder](_ROWS)}
  assert list(data.load(_SOURCE, given=given)) == list(
      data.load(SourceConfig(name='f', path=str(file))))
  assert data.fingerprint(_SOURCE, given=given) == data.fingerprint(
      _SOURCE, given={'mine': _ROWS})


def test_an_empty_cell_of_a_frame_is_an_absent_negative():
  pandas = pytest.importorskip('pandas')
  frame = pandas.DataFrame({'anchor': ['a', 'b'], 'positive': ['p', 'q'],
                            'negative': pandas.array([None, 'n'], 'string')})
  found = data.load(_SOURCE, given={'mine': frame})
  assert [len(row.negatives) for row in found] == [0, 1]


@pytest.mark.parametrize('rows, says', [
    (iter(_ROWS), 'generator|iterator.* has no rows with numbers; give a list'),
    ({'train': 3}, "'train' is int, not a list"),
    ({'query': ['q'], 'positive': []}, 'different lengths'),
    ([], r"source 'mine' .* has no rows"),
    ([{'query': 'q'}], r'mine\[0\]: no positive'),
    ([{'query': 'q', 'positive': 'p'}, 7], r'mine\[1\]: the row is int 7'),
])
def test_what_is_no_rows_is_named(rows, says):
  with pytest.raises(BadRow, match=says):
    data.load(_SOURCE, 9, given={'mine': rows})


@pytest.mark.parametrize('twice', [
    lambda: {1: ['q'], '1': ['p']},
    lambda: pytest.importorskip('pandas').DataFrame([['q', 'p']], columns=[1, 1]),
    lambda: pytest.importorskip('pyarrow').table([['q'], ['p']], names=['1', '1'])])
def test_two_columns_of_one_name_are_refused(twice):
  with pytest.raises(BadRow, match="source 'mine': the column '1' is named twice"):
    data.load(_SOURCE, given={'mine': twice()})


def test_rows_and_sources_must_meet():
  stage = StageConfig(data=DataConfig(sources=[_SOURCE]))
  with pytest.raises(FileNotFoundError, match=r"'mine': .*given are 'other'"):
    data.load(_SOURCE, given={'other': _ROWS})
  with pytest.raises(ValueError, match=r"rows are given for 'other'.* \['mine'\]"):
    data.open_stages([stage], {'mine': _ROWS, 'other': _ROWS})


def test_rows_of_two_sources_are_two(tmp_path):
  one, two = _ROWS[:2], _ROWS[2:]
  mixture = data.open_mixture(DataConfig(sources=[
      _SOURCE, dataclasses.replace(_SOURCE, name='two')]), None,
      {'mine': one, 'two': two})
  assert mixture.sizes == (2, 4)
  marks = mixture.fingerprints
  assert marks['mine'] != marks['two']


def test_rows_that_vanish_are_noticed():
  rows = list(_ROWS)
  found = data.load(_SOURCE, given={'mine': rows})
  rows.pop()
  with pytest.raises(BadRow, match=r'mine\[5\]: the row is gone'):
    found[5]


@pytest.mark.thorough
def test_a_run_goes_on_with_the_same_rows_alone(tmp_path, minilm):
  """Trains as from a file; resuming knows its rows by what they say."""
  stored = tiny_run.in_folder(tmp_path, minilm, steps=2)
  rows = [json.loads(line) for line in (tmp_path / 'rows.jsonl').open()]
  cfg = copy.deepcopy(stored)
  cfg.stages[0].data.sources = [SourceConfig(name='rows', kind='memory')]

  def train(folder, cfg, rows=None):
    loop.train(cfg, tmp_path / folder, log=lambda _: None, rows=rows)
    return tiny_run.parameters(tmp_path / folder)

  want, have = train('file', stored), train('rows', cfg, {'rows': rows})
  assert all(map(np.array_equal, want.values(), have.values()))
  cfg.stages[0].steps = 3
  changed = [*rows[:-1], rows[-1] | {'query': 'other'}]
  with pytest.raises(ValueError, match='is not what .* was made with'):
    train('rows', cfg, {'rows': changed})
  train('rows', cfg, {'rows': tuple(rows)})
