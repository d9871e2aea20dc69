"""A teacher's vectors: written for an experiment's texts, found by them, in batches."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from jaxembed import config, data, embedder, losses, teach
from jaxembed.data import teacher
from jaxembed.train import loop, plan
from tests.helpers import tiny_run, tiny_step

ROWS = [{'query': f'what is {i}', 'pos': [f'{i} it is', f'is {i}'],
         'neg': [f'not {j} but {i}' for j in range(1 + i % 2)]} for i in range(6)]


@pytest.fixture(scope='module')
def model(tiny):
  return embedder.Embedder.load(tiny)


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  path = tmp_path_factory.mktemp('rows') / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, ROWS)))
  return config.SourceConfig(name='a', path=str(path))


@pytest.fixture(scope='module')
def folder(model, rows, tmp_path_factory):
  target = tmp_path_factory.mktemp('teacher') / 'vectors'
  texts = teach.texts([data.sources.load(rows)])
  assert teach.encode(model, texts, target, prompts={'queries': 'ask: '},
                      dtype='float32') == {'queries': 6, 'passages': 21}
  return target


def mixture(source, **fields):
  return data.open_mixture(config.DataConfig(
      sources=[source], batch_size=4, num_negatives=2, query_lengths=(8,),
      passage_lengths=(8,), prefetch=0, **fields))


def test_batches_bring_the_vectors_of_their_texts(model, rows, folder, tiny):
  source = dataclasses.replace(rows, teacher=(str(folder), str(folder)))
  found = mixture(source)
  batch, info = next(data.batches(found, data.Tokenizer.load(tiny), seed=0))
  pair = batch.pairing
  texts = {text: model.encode([text], prompt='', normalize_embeddings=True)[0]
           for row in ROWS for text in row['pos'] + row['neg']}
  for i, (_, row) in enumerate(info.rows):
    want = model.encode([ROWS[row]['query']], prompt='ask: ',
                        normalize_embeddings=True)[0]
    # Of two teachers that are one, the vectors stand twice, and cosines stay.
    np.testing.assert_allclose(pair.query_teacher[i], np.tile(want, 2) / 2**0.5,
                               atol=1e-5)
    for c in np.flatnonzero(pair.owner == i):
      half = pair.passage_teacher[c, :len(want)] * 2**0.5
      text = max(texts, key=lambda t: half @ texts[t])
      assert text in ROWS[row]['pos'] + ROWS[row]['neg']
      np.testing.assert_allclose(half, texts[text], atol=1e-5)
      np.testing.assert_allclose(pair.score[c], want @ texts[text], atol=1e-5)
  assert np.isnan(pair.passage_teacher[pair.owner < 0]).all()
  found.check_scores(losses.LOSSES['distill_kl'].reads)  # cosines serve as scores
  found.check_scores(losses.LOSSES['distill_batch'].reads)
  assert found.notes(losses.LOSSES['distill_kl'].reads) == []
  shapes = plan.largest_batch(config.StageConfig(data=found.cfg),
                              tiny_step.mesh((1, 1, 1)), found).pairing
  assert shapes.query_teacher.shape == pair.query_teacher.shape
  assert shapes.score.shape == pair.score.shape


@pytest.mark.parametrize('pack', [0, 32])
def test_four_hosts_bring_the_vectors_of_one(rows, folder, tiny, tmp_path, pack):
  """Padded and packed, where one row is skipped too."""
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(['bad', *map(json.dumps, ROWS)]))
  found = mixture(dataclasses.replace(
      rows, path=str(path), teacher=(str(folder),), on_bad_row='skip'), pack=pack)
  assert found.sizes == (7,)
  tokenizer = data.Tokenizer.load(tiny)
  whole, *parts = (
      [batch.pairing for batch, _ in itertools.islice(data.batches(
          found, tokenizer, seed=0, shards=4, local_rows=local), 3)]
      for local in (None, [0], [1], [2], [3]))
  for one, *four in zip(whole, *parts, strict=True):
    for name in ('query_teacher', 'passage_teacher', 'score', 'owner'):
      np.testing.assert_array_equal(
          getattr(one, name), np.concatenate([getattr(p, name) for p in four]))
    assert np.isfinite(one.passage_teacher[one.owner >= 0]).all()
  assert sum(np.isnan(p.query_teacher).all(1).sum() for p in whole) == 2


def test_rows_with_scores_of_their_own_keep_them(folder, rows, tiny, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(json.dumps(r | {
      'pos_scores': [7.0, 7.0]}) for r in ROWS))
  source = dataclasses.replace(rows, path=str(path), teacher=(str(folder),))
  batch, _ = next(data.batches(mixture(source), data.Tokenizer.load(tiny), seed=0))
  scores = batch.pairing.score
  assert set(scores[~np.isnan(scores)]) == {7.0}


def test_what_a_teacher_lacks_is_refused_by_line(rows, folder, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, [*ROWS, {'query': 'q', 'pos': ['new']}])))
  other = dataclasses.replace(rows, path=str(path), teacher=(str(folder),))
  with pytest.raises(data.BadRow, match=r"rows\.jsonl:7: .*queries has no vector of 'q'"
                     ".*teach again, with --overwrite"):
    mixture(other)
  with pytest.raises(FileNotFoundError, match="source 'a': teacher=.*jaxembed teach"):
    mixture(dataclasses.replace(rows, teacher=(str(tmp_path),)))
  with pytest.raises(ValueError, match="draws texts anew.*leave teacher out"):
    config.SourceConfig(name='a', path='a', rows='label_text', teacher=('x',))
  bare = mixture(rows)
  for reads in (losses.LOSSES['embed_match'].reads, losses.named(config.LossConfig(
      options=(('guide', 'absolute'),))).reads):
    with pytest.raises(ValueError, match='SourceConfig.teacher'):
      bare.check_scores(reads)


def test_a_teacher_that_no_loss_reads_is_told_of(rows, folder):
  found = mixture(dataclasses.replace(rows, teacher=(str(folder),)))
  assert any("'a': the loss reads neither" in n for n in found.notes(config.Reads()))
  for reads in (None, *(losses.LOSSES[n].reads for n in ('embed_match', 'distill_kl'))):
    assert not any('teaches nothing' in n for n in found.notes(reads))


def test_vectors_are_made_once_and_by_one_model(model, rows, folder, monkeypatch):
  texts = teach.texts([data.sources.load(rows)])
  monkeypatch.setattr(embedder.Embedder, 'encode',
                      lambda *_, **__: pytest.fail('again'))
  same = {'prompts': {'queries': 'ask: '}, 'dtype': 'float32'}
  teach.encode(model, texts, folder, **same)
  for other in ({'prompts': {'queries': 'find: '}}, {'dtype': 'float16'}):
    with pytest.raises(ValueError, match='queries holds vectors'):
      teach.encode(model, texts, folder, **same | other)
  with monkeypatch.context() as patch:
    patch.setattr(embedder.Embedder, 'vector_fingerprint', lambda _: 'another')
    with pytest.raises(ValueError, match='queries holds vectors .*model'):
      teach.encode(model, texts, folder, **same)
  more = {side: [*own, 'new'] for side, own in texts.items()}
  with pytest.raises(ValueError, match='of other queries'):
    teach.encode(model, more, folder)
  assert teacher.texts_of(data.records.from_row({'set': ['a', 'b']}, 'x:1')) == (
      ['a', 'b'], ['a', 'b'])


@pytest.mark.thorough
def test_a_run_learns_from_a_teacher_and_is_resumed(tiny, rows, folder, tmp_path):
  """The loss's projection is in the checkpoints, and not in the model."""
  cfg = tiny_run.experiment(tiny, rows.path, steps=4)
  cfg.stages[0].data.sources[0].teacher = (str(folder),)
  width = embedder.Embedder.load(tiny).width()
  cfg.stages[0].loss = config.LossConfig(
      weight=0.5, plus=[config.LossConfig(
          name='embed_match', options=(('teacher_width', width),))])
  state, _ = loop.train(cfg, tmp_path / 'run', log=lambda _: None)
  assert state.params['loss']['projection']['kernel'].shape == (width, width)
  cfg.stages[0].steps = 6
  again, _ = loop.train(cfg, tmp_path / 'run', log=lambda _: None)
  assert int(again.step) == 6
  assert embedder.Embedder.load(tmp_path / 'run').encode('a').shape == (width,)
