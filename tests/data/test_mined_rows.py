"""rows='mined': the folder of a mining run, or what it meant before."""

import json

import pytest

from jaxembed.config import SourceConfig
from jaxembed.data import sources
from jaxembed.data.fields import BadRow

ROW = {'query': 'q', 'pos': ['p'], 'neg': ['n', 'm'], 'pos_scores': [0.5],
       'neg_scores': [0.25, 0.125], 'query_id': '7', 'instruction': 'find'}


def _run(folder):
  folder.mkdir()
  for name in ('queries.jsonl', 'documents.jsonl'):
    (folder / name).write_text('{"text": "q"}\n')
  (folder / 'collection.json').write_text('{}')
  return folder


def test_a_run_is_read_with_its_scores(tmp_path):
  folder = _run(tmp_path / 'run')
  cfg = SourceConfig(name='m', rows='mined', path=str(folder))
  assert cfg == SourceConfig(name='m', kind='mined', path=str(folder))
  with pytest.raises(BadRow, match='no mined rows.*launch.mine --workdir='):
    sources.load(cfg)
  (folder / 'mined.jsonl').write_text(json.dumps(ROW) + '\n')
  (folder / 'mined.json').write_text('{}')
  row = sources.load(cfg)[0]
  assert (row.query, row.query_id, row.instruction) == ('q', '7', 'find')
  assert [(p.text, p.score) for p in row.positives + row.negatives] == [
      ('p', 0.5), ('n', 0.25), ('m', 0.125)]


def test_a_run_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='the folder of a mining run'):
    sources.load(SourceConfig(name='m', rows='mined', path=str(tmp_path / 'none')))
  with pytest.raises(ValueError, match="kind 'mined' gives no rows='scored'"):
    SourceConfig(name='m', kind='mined', rows='scored', path='x')
  with pytest.raises(ValueError, match='of another kind than .mined.'):
    SourceConfig(name='m', rows='mined', path='x', columns=('a', 'b'))


def test_of_files_of_rows_it_is_bm25_as_before(tmp_path):
  (tmp_path / 'rows').mkdir()
  file = tmp_path / 'rows' / 'a.jsonl'
  file.write_text('{"query": "a cat", "positive": "cats"}\n'
                  '{"query": "a dog", "positive": "dogs"}\n')
  for path in (file, tmp_path / 'rows', tmp_path / 'rows' / '*'):
    cfg = SourceConfig(name='m', rows='mined', path=str(path))
    assert cfg.rows == 'bm25' and cfg.kind == 'jsonl'
    assert [p.text for p in sources.load(cfg)[0].negatives] == ['dogs']
