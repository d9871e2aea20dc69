"""The example programs, run with tiny settings, and what they print."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / 'examples').glob('*.py'))


@pytest.fixture
def run(minilm, tmp_path):
  """Runs an example in an empty folder, with all-MiniLM-L6-v2 in its place."""
  (tmp_path / 'sentence-transformers').mkdir()
  (tmp_path / 'sentence-transformers/all-MiniLM-L6-v2').symlink_to(minilm)
  environment = os.environ | {
      'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore',
      'XLA_FLAGS': os.environ['XLA_FLAGS'].replace(
          '--xla_force_host_platform_device_count=8', '')}

  def call(name: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / f'examples/{name}.py'), *args], cwd=tmp_path,
        env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout

  return call


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_short_and_says_how_it_is_called(path):
  text = path.read_text()
  assert text.count('\n') < 60
  assert f'python examples/{path.name}' in text


@pytest.mark.thorough
def test_search_files(run):
  out = run('search_files', 'how do I make the wheels of a bicycle stop',
            f'--folder={ROOT / "tests/docs/texts"}', '--ending=.txt', '--top=1')
  assert 'bicycle.txt' in out and 'brake' in out


@pytest.mark.thorough
def test_fine_tune_rows(run, tmp_path):
  out = run('fine_tune_rows', '--steps=2', '--limit=25', '--batch_size=4')
  assert re.search(r'20 rows, 5 held out; nDCG@10 \d\.\d+ before, \d\.\d+ after', out)
  assert (tmp_path / 'runs/fine_tune_rows/report.png').exists()


@pytest.mark.thorough
def test_mine_then_train(run, tmp_path):
  out = run('mine_then_train', '--limit=12', '--steps=2', '--batch_size=4',
            '--negatives=1')
  assert re.search(r'nDCG@10 of 3 queries .*: \d\.\d+ before, \d\.\d+ after', out)
  assert (tmp_path / 'runs/mine_then_train/mined/mined.jsonl').exists()


@pytest.mark.thorough
def test_lora_to_sentence_transformers(run, tmp_path):
  out = run('lora_to_sentence_transformers', '--steps=2')
  assert 'largest difference of a query' in out
  assert (tmp_path / 'exports/colours/modules.json').exists()


@pytest.mark.thorough
def test_compare_models(run, tmp_path):
  name = 'sentence-transformers/all-MiniLM-L6-v2'
  (tmp_path / 'pairs.jsonl').write_text(''.join(
      f'{{"query": "{q}", "positive": "{p}"}}\n' for q, p in (
          ('a resting animal', 'The cat sat on the mat.'),
          ('markets', 'Stocks fell on Monday.'),
          ('baking', 'Bread rises because of yeast.'))))
  out = run('compare_models', name, name, '--data=pairs.jsonl')
  assert out.count('MRR 1.0000') == 2
  assert '+0.0000, 95% of draws in [+0.0000, +0.0000]: these queries cannot tell' in out
