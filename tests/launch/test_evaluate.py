"""The launchers of evaluation, encoding and export, as a person calls them."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Two-device meshes are tested in-process; a launcher here has one.
ENVIRONMENT = os.environ | {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace(
    '--xla_force_host_platform_device_count=8', '')}


def _launch(name: str, *flags: str) -> subprocess.CompletedProcess:
  return subprocess.run(
      [sys.executable, '-m', f'launch.{name}', *flags], cwd=ROOT, env=ENVIRONMENT,
      capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def beir_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('beir')
  texts = ['Cats purr when they are content.', 'A steam engine turns heat into work.',
           'Bread rises because yeast makes gas.']
  queries = ['why does dough grow', 'sounds of a happy cat', 'machines driven by steam']
  answers = [2, 0, 1]
  (folder / 'corpus.jsonl').write_text(''.join(
      json.dumps({'_id': f'd{i}', 'title': '', 'text': t}) + '\n'
      for i, t in enumerate(texts)))
  (folder / 'queries.jsonl').write_text(''.join(
      json.dumps({'_id': f'q{i}', 'text': t}) + '\n' for i, t in enumerate(queries)))
  (folder / 'qrels').mkdir()
  (folder / 'qrels/test.tsv').write_text('query-id\tcorpus-id\tscore\n' + ''.join(
      f'q{i}\td{a}\t1\n' for i, a in enumerate(answers)))
  return folder


def test_retrieval_and_a_second_run(minilm, beir_folder, tmp_path):
  out = tmp_path / 'scores.json'
  flags = (f'--model={minilm}', '--task=retrieval', f'--data={beir_folder}',
           f'--out={out}', '--k=1', '--k=10')
  done = _launch('evaluate', *flags)
  assert done.returncode == 0, done.stderr
  scores = json.loads(out.read_text())['scores']
  assert scores['ndcg@10'] == 1 and scores['recall@1'] == 1
  assert 'ndcg@10 1.0000' in done.stdout
  before = out.read_bytes()
  again = _launch('evaluate', *flags)
  assert again.returncode == 1 and out.read_bytes() == before
  assert 'exists; pass --overwrite' in again.stderr
  assert 'Traceback' not in again.stderr


@pytest.mark.thorough
def test_sts(minilm, tmp_path):
  data = tmp_path / 'pairs.tsv'
  data.write_text('score\tsentence1\tsentence2\n'
                  '5\tA cat sleeps.\tA cat is sleeping.\n'
                  '2\tA cat sleeps.\tA dog sleeps.\n'
                  '0\tA cat sleeps.\tStocks fell on Monday.\n')
  done = _launch('evaluate', f'--model={minilm}', '--task=sts', f'--data={data}')
  assert done.returncode == 0, done.stderr
  assert 'spearman 1.0000' in done.stdout


@pytest.mark.thorough
def test_passkeys_are_a_table_and_a_picture(minilm, tmp_path):
  (tmp_path / 'filler.txt').write_text('The grass is green. The sky is blue. ' * 40)
  done = _launch(
      'evaluate', f'--model={minilm}', '--task=passkey',
      f'--data={tmp_path / "filler.txt"}', '--length=grouped:target=1024',
      '--lengths=64,600', '--documents=4', '--queries=4', '--depths=2',
      f'--out={tmp_path / "scores.json"}')
  assert done.returncode == 0, done.stderr
  lines = [line.split() for line in done.stdout.splitlines()]
  assert ['tokens', '0%', '100%', 'all', 'cut'] in lines
  assert any(line[:1] == ['600'] and line[-1] == '0%' for line in lines)
  scores = json.loads((tmp_path / 'scores.json').read_text())['scores']
  assert scores.keys() == {'accuracy@64', 'accuracy@600', 'mean'}
  assert (tmp_path / 'scores.png').read_bytes()[:4] == b'\x89PNG'
  refused = _launch('evaluate', f'--model={minilm}', '--task=passkey', '--length=ntk:'
                    'target=1024', f'--data={tmp_path / "filler.txt"}')
  assert refused.returncode == 1 and 'choose interpolate, grouped' in refused.stderr


@pytest.mark.thorough
def test_classification_and_clustering(minilm, tmp_path):
  pytest.importorskip('sklearn')
  things = {'animal': ('cat', 'dog', 'horse', 'cow'),
            'tool': ('hammer', 'saw', 'drill', 'wrench')}
  for split, part in (('train', slice(0, 2)), ('test', slice(2, 4))):
    (tmp_path / f'{split}.jsonl').write_text(''.join(
        json.dumps({'text': f'I bought a {name}.', 'label': label}) + '\n'
        for label, names in things.items() for name in names[part]))
  for task, figure in (('classification', 'accuracy'), ('clustering', 'v_measure')):
    done = _launch('evaluate', f'--model={minilm}', f'--task={task}',
                   f'--data={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert f'{figure} 1.0000' in done.stdout


@pytest.mark.thorough
def test_encode(minilm, tmp_path):
  source, target = tmp_path / 'texts.txt', tmp_path / 'vectors.npy'
  source.write_text('One.\nTwo.\n')
  flags = (f'--model={minilm}', f'--input={source}', f'--output={target}')
  done = _launch('encode', *flags)
  assert done.returncode == 0, done.stderr
  assert np.load(target, mmap_mode='r').shape == (2, 384)
  again = _launch('encode', *flags)
  assert again.returncode == 1 and 'exists and is complete' in again.stderr


@pytest.mark.thorough
def test_convert_refuses_an_existing_target(minilm, tmp_path):
  done = _launch('convert', f'--source={minilm}', f'--target={tmp_path}')
  assert done.returncode == 1
  assert f'{tmp_path} exists; choose another target' in done.stderr


@pytest.mark.slow
def test_scifact_is_sentence_transformers_figure(minilm, shared_data):
  """Minutes: 5,183 abstracts through both libraries."""
  from jaxembed.data import beir
  from jaxembed.embedder import Embedder
  from jaxembed.evaluation import metrics, retrieval
  st = pytest.importorskip('sentence_transformers')
  task = beir.load(shared_data / 'retrieval/scifact')
  with pytest.warns(UserWarning, match='cut'):
    ours = retrieval.evaluate(Embedder.load(minilm), task.corpus, task.queries,
                              task.qrels)
  model = st.SentenceTransformer(str(minilm), device='cpu')
  scores = model.similarity(model.encode(list(task.queries.values())),
                            model.encode(list(task.corpus.values()))).numpy()
  run = {q: dict(zip(task.corpus, row.tolist()))
         for q, row in zip(task.queries, scores)}
  theirs = metrics.retrieval(task.qrels, run)
  assert ours['ndcg@10'] == pytest.approx(theirs['ndcg@10'], abs=1e-3)
  assert ours['ndcg@10'] == pytest.approx(0.6451, abs=1e-3)  # as published
