"""Passkeys, needles and LongEmbed's folders, on models whose answers are known."""

import itertools
import json
import types
import zlib

import numpy as np
import pytest

from jaxembed.evaluation import long_texts, tasks

FILLER = ('The grass is green. The sky is blue! Is the sun yellow? Here we go, there '
          'and back again, over the hills and far away.\nRain falls on the plain. ' * 3)


class _Words:
  """Stands for an Embedder: a vector counts the pairs of words among the first `most`
  of a text."""

  mesh, similarity_fn_name, prompts = None, 'dot', {}
  tokenizer = types.SimpleNamespace(
      count=lambda text: len(text.split()), frame=(1, 1))

  def __init__(self, most):
    self.most = most

  def encode_document(self, texts, *_, **__):
    words = [text.lower().replace('.', '').replace('?', '').split() for text in texts]
    self.report = types.SimpleNamespace(
        truncated=sum(len(w) > self.most for w in words))
    out = np.zeros((len(texts), 1 << 14), np.float32)
    for row, found in zip(out, words):
      for pair in itertools.pairwise(found[:self.most]):
        row[zlib.crc32(' '.join(pair).encode()) % row.size] += 1
    return out

  encode_query = encode_document


@pytest.mark.parametrize('task', long_texts.TASKS)
def test_documents_are_as_long_as_asked_and_hold_their_sentence(task):
  count = _Words.tokenizer.count
  args = task, FILLER, (64, 256), count
  made = long_texts.probes(*args, documents=40, queries=20, depths=5)
  assert made == long_texts.probes(*args, documents=40, queries=20, depths=5)
  assert made != long_texts.probes(*args, documents=40, queries=20, depths=5, seed=1)
  for probe in made:
    sizes = [count(d) + 2 for d in probe.documents]
    assert probe.length - 25 <= min(sizes) and max(sizes) <= probe.length
    assert len(set(probe.documents)) == 40 and len(set(probe.queries)) == 20
    for document, query, depth in zip(probe.documents, probe.queries, probe.depths):
      who = query.removesuffix('?').split(' of ' if task == 'passkey' else ' in ')[1]
      assert who in document
      assert sum(who in d for d in probe.documents) == 1
      before = count(document[:document.index('The pass key' if task == 'passkey' else
                                              'The best thing')])
      assert abs(before / count(document) - depth) < 0.4
      assert (depth == 0) == (before == 0)


def test_a_model_finds_what_it_has_read():
  """All of it, where it reads whole documents; what lies before the cut, where not."""
  options = dict(lengths=(64, 256), documents=30, queries=25, depths=5)
  whole = long_texts.evaluate(_Words(10**6), 'passkey', FILLER, **options)
  assert whole.scores == {'accuracy@64': 1, 'accuracy@256': 1, 'mean': 1}
  assert whole.asked.tolist() == [[5] * 5] * 2 and whole.cut == (0, 0)
  half = long_texts.evaluate(_Words(128), 'passkey', FILLER, **options)
  assert half.hits[0].tolist() == [5] * 5 and half.cut == (0, 1)
  assert half.hits[1, :2].tolist() == [5, 5] and half.hits[1, 3:].max() <= 1
  lines = half.table().splitlines()
  assert lines[0].split() == ['tokens', '0%', '25%', '50%', '75%', '100%', 'all', 'cut']
  assert lines[1].split() == ['64', *['100'] * 6, '0%']


def test_equal_documents_are_no_hit():
  model = _Words(3)  # reads 'what is the', 'the pass key' alone
  found = long_texts.evaluate(model, 'passkey', 'A a a. ' * 20, lengths=(64,),
                              documents=10, queries=10, depths=1)
  assert found.scores['mean'] == 0


def test_the_table_is_drawn(tmp_path):
  grid = long_texts.Grid((64, 128), (0.0, 1.0), np.array([[1, 2], [0, 1]]),
                         np.array([[2, 2], [2, 2]]), (0.0, 1.0))
  grid.picture(tmp_path / 'grid.png', 'passkey')
  assert (tmp_path / 'grid.png').read_bytes()[:4] == b'\x89PNG'


def test_the_real_tasks_that_are_there_are_scored(tmp_path):
  for name in ('qmsum', '2wikimqa'):
    folder = tmp_path / name
    (folder / 'qrels').mkdir(parents=True)
    (folder / 'corpus.jsonl').write_text(''.join(json.dumps(
        {'_id': f'd{i}', 'text': f'word{i} filler'}) + '\n' for i in range(3)))
    (folder / 'queries.jsonl').write_text(json.dumps(
        {'_id': 'q', 'text': 'word1 filler'}))
    (folder / 'qrels/test.tsv').write_text('query-id\tcorpus-id\tscore\nq\td1\t1\n')
  with pytest.warns(UserWarning, match='lacks narrativeqa, summ_screen_fd'):
    scores = tasks.run('longembed', _Words(99), tmp_path)
  assert scores == {'qmsum ndcg@10': 1, '2wikimqa ndcg@10': 1, 'mean ndcg@10': 1}
  with pytest.raises(FileNotFoundError, match='none of the folders narrativeqa'):
    tasks.run('longembed', _Words(99), tmp_path / 'qmsum')


@pytest.mark.parametrize('task,options,message', [
    ('sts', dict(depths=3), 'depths has no meaning for the task sts'),
    ('passkey', dict(prompt='a'), 'prompt has no meaning for the task passkey'),
    ('passkey', dict(lengths=(0,)), 'lengths has 0'),
    ('passkey', dict(lengths=(8,)), 'length 8 has no room'),
    ('needle', dict(documents=500), '500 documents of needle; give 2 to 106'),
    ('passkey', dict(queries=101), '101 queries for 100 documents'),
    ('passkey', dict(depths=51), '51 depths of 50 queries')])
def test_what_means_nothing_is_refused(task, options, message):
  with pytest.raises(ValueError, match=message):
    tasks.run(task, _Words(9), FILLER, tasks.Options(**options))
  with pytest.raises(ValueError, match='no sentence'):
    long_texts.probes('needle', ' \n ', (64,), len)
