"""Rows of two texts and their score: read, refused, and what a loss makes of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxembed import config, data, losses
from jaxembed.models import encoder
from jaxembed.train import step
from tests.helpers import tiny_step

ROWS = [('a man plays', 'a man is playing', 4.5), ('a dog', 'the stock market', 0.2),
        ('two cats', 'three cats', 3.0), ('rain', 'it is raining', 3.0)]
FORMS = {
    'sentence-transformers': lambda a, b, s: {
        'sentence1': a, 'sentence2': b, 'score': s},
    'label': lambda a, b, s: {'query': a, 'positive': [b], 'label': s, 'other': 1},
    'named': lambda a, b, s: {'x': a, 'y': b, 'z': str(s)},
    'list': lambda a, b, s: [a, b, s]}


def source(tmp_path, rows, **fields):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  return config.SourceConfig(name='s', path=str(path), rows='scored', **fields)


@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_read_with_its_score(tmp_path, form):
  columns = ('x', 'y', 'z') if form == 'named' else ()
  cfg = source(tmp_path, [FORMS[form](*row) for row in ROWS], columns=columns)
  found = [(e.query, *((p.text, p.score) for p in e.positives)) for e in
           data.sources.load(cfg)]
  assert found == [(a, (b, s)) for a, b, s in ROWS]


@pytest.mark.parametrize('row, says', [
    ({'sentence1': 'a', 'sentence2': 'b'}, 'no score; one of the fields score'),
    ({'sentence1': 'a', 'sentence2': 'b', 'score': float('nan')}, 'not a finite'),
    ({'sentence1': 'a', 'sentence2': 'b', 'score': 'high'}, 'not a finite number'),
    ({'query': 'a', 'pos': ['b', 'c'], 'score': 1.0}, 'the row has 3 texts'),
    ({'query': 'a', 'pos': ['b'], 'neg': ['c'], 'score': 1.0}, 'the row has 3 texts'),
    (['a', 'b'], 'the row has 2 cells'), (['a', 'b', 1.0, 2.0], 'the row has 4 cells')],
    ids=str)
def test_other_rows_are_refused_by_line(tmp_path, row, says):
  cfg = source(tmp_path, [FORMS['list'](*ROWS[0]), row])
  with pytest.raises(data.BadRow, match=rf'rows\.jsonl:2: .*{says}'):
    data.sources.load(cfg)[1]


def test_a_score_is_used_or_refused(tmp_path):
  rows = [FORMS['sentence-transformers'](*row) for row in ROWS]
  cfg = config.DataConfig(sources=[source(tmp_path, rows)], num_negatives=1)
  found = data.open_mixture(cfg)
  found.check_scores(losses.LOSSES['cosent'].reads)
  for name in ('info_nce', 'distill_kl'):
    with pytest.raises(ValueError, match="source 's'.*rows='scored'.*'cosent'"):
      found.check_scores(losses.LOSSES[name].reads)
  both = config.LossConfig(plus=[config.LossConfig(name='cosent')])
  found.check_scores(losses.named(both).reads)
  bare = source(tmp_path, [{'query': 'q', 'pos': ['p']}])
  bare = data.open_mixture(dataclasses.replace(
      cfg, sources=[dataclasses.replace(bare, rows='pairs')]))
  with pytest.raises(ValueError, match='no source brings any'):
    bare.check_scores(losses.named(both).reads)
  with pytest.raises(ValueError, match='symmetric'):
    source(tmp_path, rows, symmetric=True)
  with pytest.raises(ValueError, match='their score, in this order'):
    source(tmp_path, rows, columns=('a', 'b'))


@pytest.mark.thorough
def test_from_rows_to_the_loss_that_sentence_transformers_computes(minilm, tmp_path):
  """Scored pairs beside pairs: CoSENT reads the former, InfoNCE the latter alone."""
  from sentence_transformers.sentence_transformer.losses import CoSENTLoss
  import torch
  scored = source(tmp_path, [FORMS['sentence-transformers'](*row) for row in ROWS])
  pairs = config.SourceConfig(name='p', kind='memory')
  given = {'p': [{'query': f'q {i}', 'positive': f'p {i}'} for i in range(4)]}
  parts = config.LossConfig(temperature=0.05), config.LossConfig(
      name='cosent', temperature=0.05, weight=2.0)
  stage = config.StageConfig(
      loss=dataclasses.replace(parts[0], plus=[parts[1]]),
      data=config.DataConfig(sources=[scored, pairs], batch_size=8, query_lengths=(8,),
                             passage_lengths=(8,), prefetch=0))
  mixture = data.open_stages([stage], given)[0]
  batch, _ = next(data.batches(mixture, data.Tokenizer.load(minilm), seed=0))
  model = dataclasses.replace(tiny_step.model(), backbone=dataclasses.replace(
      tiny_step.model().backbone, vocab_size=30522))
  params = encoder.init_params(model, jax.random.key(0))
  _, metrics = step.loss_and_metrics(params, batch, model, stage, jax.random.key(0))
  q, p = (np.asarray(encoder.encode(params, model, x))
          for x in (batch.query, batch.passage))
  own = batch.pairing.group == 0
  assert own.sum() and (~own).sum()
  np.testing.assert_array_equal(batch.pairing.is_positive, ~own)
  assert metrics['loss/rows_without_positive'] == own.sum()
  want = CoSENTLoss(None).compute_loss_from_embeddings(
      [torch.tensor(q[own]), torch.tensor(p[own])],
      torch.tensor(batch.pairing.score[own]))
  np.testing.assert_allclose(metrics['loss/cosent'], want.item(), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss/weighted_sum'],
                             metrics['loss/info_nce'] + 2 * want.item(), rtol=1e-5)
