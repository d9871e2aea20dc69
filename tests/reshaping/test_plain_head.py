"""A plain head against the head it stands for."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.embedder import Embedder
from jaxembed.models import encoder
from jaxembed.reshaping import plain_head
from tests.helpers import folders

TEXTS = [f'the cat {a} on the {b} {c}' for a in ('sat', 'fell', 'is', 'sharply')
         for b in ('mat', 'capital', 'monday', 'world') for c in ('', 'of rome', 'a')]
LATENT = config.PoolingConfig(
    kind='latent_attention', latents=4, heads=2, head_dim=8, ff_mult=1)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plain') / 'model'
  found = bundle.open(folders.backbone(folder, 'bert', folders.words(
      '<s> $A </s>', cls_token='<s>', sep_token='</s>'), 0))
  cfg = dataclasses.replace(found.cfg, pooling=LATENT)
  head = encoder.init_params(cfg, jax.random.key(0))['pooling']
  return dataclasses.replace(found, cfg=cfg, params={**found.params, 'pooling': head})


def test_a_head_that_is_the_mean_becomes_it(model):
  fitted = plain_head.fit(model, TEXTS)
  assert fitted.exact and fitted.model.cfg.pooling.kind == 'mean'
  assert not fitted.model.cfg.dense and 'pooling' not in fitted.model.params
  np.testing.assert_allclose(Embedder(fitted.model).encode(TEXTS[:5]),
                             Embedder(model).encode(TEXTS[:5]), atol=1e-6)
  with pytest.raises(ValueError, match='mean of its tokens already'):
    plain_head.fit(fitted.model, TEXTS)


@pytest.mark.thorough
def test_what_a_plain_head_costs_is_measured_on_other_texts(model):
  rng = np.random.default_rng(0)
  head = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32),
                      model.params['pooling'])
  model = dataclasses.replace(model, params={**model.params, 'pooling': head})
  fitted = plain_head.fit(model, TEXTS)
  assert not fitted.exact and len(fitted.model.cfg.dense) == 1
  cosine = (Embedder(fitted.model).encode(TEXTS)
            * Embedder(model).encode(TEXTS)).sum(-1)
  assert cosine.min() <= fitted.cosine <= 1 and fitted.least <= fitted.cosine
  plain = dataclasses.replace(model, cfg=dataclasses.replace(
      model.cfg, pooling=config.PoolingConfig()))
  mean = (Embedder(plain).encode(TEXTS) * Embedder(model).encode(TEXTS)).sum(-1)
  assert cosine.mean() > mean.mean() + 0.1  # what leaving the head out would give
  assert f'{fitted.cosine:.4f}' in fitted.model.card['notes'][0]
  # Updates alone, from a dense layer that does nothing, come nearer too.
  cfg, wanted = fitted.model.cfg, Embedder(model).encode(TEXTS)
  start = {'backbone': model.params['backbone'], 'dense': {'0': {
      'kernel': np.eye(32, dtype=np.float32), 'bias': np.zeros(32, np.float32)}}}
  moved = plain_head._match(start, cfg, model.load_tokenizer(), TEXTS, wanted,
                            plain_head.Options(steps=30, learning_rate=1e-3))
  found = Embedder(dataclasses.replace(fitted.model, params=moved)).encode(TEXTS)
  assert (found * wanted).sum(-1).mean() > mean.mean() + 0.05
