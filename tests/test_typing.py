"""What a type checker sees of the package from outside."""

import json
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def check(tmp_path_factory):
  """Pyright's errors over lines of code: (line, rule), in order."""
  pytest.importorskip('basedpyright')

  def run(*lines: str) -> list[tuple[int, str]]:
    folder = tmp_path_factory.mktemp('checked')
    (folder / 'pyrightconfig.json').write_text(json.dumps({
        'typeCheckingMode': 'basic', 'extraPaths': [str(_ROOT)]}))
    (folder / 'script.py').write_text('\n'.join(lines))
    done = subprocess.run(
        [sys.executable, '-m', 'basedpyright', '-p', str(folder), '--outputjson',
         '--pythonpath', sys.executable], capture_output=True, text=True)
    found = json.loads(done.stdout)['generalDiagnostics']
    return [(f['range']['start']['line'], f['rule']) for f in found
            if f['severity'] == 'error']

  return run


@pytest.mark.thorough
def test_a_misspelt_name_is_found(check):
  assert check(
      'import jaxembed',
      "model = jaxembed.Embedder.load('folder')",
      "model.encod(['a text'])",
      'model.promts = {}',
      'jaxembed.Embeder',
      "vectors = model.encode(['a text'])",
      'jaxembed.top_k(vectors, vectors, k=1)',
      'model.max_seq_length = 64',
  ) == [(2, 'reportAttributeAccessIssue'), (3, 'reportAttributeAccessIssue'),
        (4, 'reportAttributeAccessIssue')]


@pytest.mark.thorough
def test_vectors_are_arrays_and_misspelt_arguments_are_found(check):
  assert check(
      'import numpy as np',
      'import jaxembed',
      "model = jaxembed.Embedder.load('folder')",
      "a: np.ndarray = model.encode_query('a text', batch_size=8)",
      "model.encode(['a text']).nonsense",
      "model.encode('a text', convert_to_tensor=True).cpu()",
      "model.encode('a text', normalise=True)",
      "model.encode_document('a text', normalise=True)",
      "run = jaxembed.fit(model, [('a', 'b')], learning_rat=1e-4)",
      "b: dict[str, float] = jaxembed.evaluate(run.model, 'rows.jsonl')",
      'b.nonsense',
  ) == [(4, 'reportAttributeAccessIssue'), (6, 'reportCallIssue'),
        (7, 'reportCallIssue'), (8, 'reportCallIssue'),
        (10, 'reportAttributeAccessIssue')]


@pytest.mark.thorough
def test_the_package_has_no_type_errors():
  """As make lint runs it."""
  pytest.importorskip('basedpyright')
  done = subprocess.run(
      [sys.executable, '-m', 'basedpyright', '--pythonpath', sys.executable],
      cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-3000:]
