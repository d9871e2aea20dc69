"""A pooling is one record: what a new one has to bring, and what follows from it."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jaxembed import config
from jaxembed.convert import exporters
from jaxembed.embedder import Embedder
from jaxembed.models import encoder
from jaxembed.pooling import heads
from jaxembed.pooling.head import Head, Tensor, Twin, Vectors, of_each_text
from jaxembed.train import loop
from tests.helpers import tiny_run, tiny_step
from tests.helpers.tiers import thorough


def _middle(params, cfg, states):
  """The mean of the first and the last token: without parameters."""
  both = heads.HEADS['cls'].apply(None, cfg, states) + heads.HEADS['last'].apply(
      None, cfg, states)
  return both / 2


def _gated(params, cfg, states):
  """The mean of tokens times a trained gate."""
  def gate(x, pool, text):
    del text
    weights = jax.nn.sigmoid(x.astype(jnp.float32) @ params['gate'])
    weights = jnp.where(pool, weights, 0)[..., None]
    return (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1e-6)

  return of_each_text(gate, states)


def _tokens(params, cfg, states):
  keep = states.segment >= 0
  return Vectors(states.hidden.astype(jnp.float32)[:, None], keep[:, None])


def _power_mean(params, cfg, states):
  """The mean of |x|^p, to the 1/p: an option, and no parameters."""
  power = cfg.option('power')

  def one(x, pool, text):
    del text
    x = jnp.where(pool[..., None], jnp.abs(x.astype(jnp.float32)) ** power, 0)
    return (x.sum(1) / jnp.maximum(pool.sum(1), 1)[:, None]) ** (1 / power)

  return of_each_text(one, states)


SCRATCH = (
    Head(kind='middle', apply=_middle, words='the middle of its ends'),
    Head(kind='gated', apply=_gated, words='a gated mean',
         init=lambda cfg, dim, layers, key: {'gate': jax.random.normal(key, (dim,))},
         rules=((r'pooling/gate$', P()),)),
    Head(kind='power', apply=_power_mean, words='a power mean',
         options={'power': 2.0}),
    Head(kind='tokens', apply=_tokens, words='its tokens'),
)


@pytest.fixture
def scratch(monkeypatch):
  for head in SCRATCH:
    monkeypatch.setitem(heads.HEADS, head.kind, head)


@pytest.mark.thorough
@pytest.mark.parametrize('kind', ['gated', thorough('middle')])
def test_a_new_pooling_trains_from_its_record_alone(scratch, kind):
  cfg = tiny_step.model(kind)
  batch = tiny_step.batches(1)[0]
  for shape, steps in (((1, 1, 1), [batch] * 2),
                       ((2, 1, 1), [tiny_step.packed(batch, 2, 32)] * 2)):
    losses, state = tiny_step.curve(cfg, tiny_step.STAGE, shape, steps)
    assert losses[1] < losses[0]
  assert ('pooling' in state.params) == (kind == 'gated')
  np.testing.assert_allclose(losses, tiny_step.curve(
      cfg, tiny_step.STAGE, (1, 1, 1), [batch] * 2)[0], rtol=1e-5)


def test_a_kind_that_no_record_has_is_refused():
  cfg = tiny_step.model('meen')
  with pytest.raises(ValueError, match="'meen'; choose one of cls, max, mean"):
    encoder.param_shapes(cfg)
  with pytest.raises(ValueError, match='stands alone'):
    encoder.param_shapes(tiny_step.model('mean+latent_attention'))


@pytest.mark.thorough
def test_several_vectors_for_a_text(scratch):
  cfg = tiny_step.model('tokens')
  params = encoder.init_params(cfg, jax.random.key(0))
  tokens = tiny_step.batches(1)[0].query
  found = encoder.encode_vectors(params, cfg, tokens)
  np.testing.assert_array_equal(found.mask, tokens.mask)
  np.testing.assert_allclose(
      found.values, encoder.hidden_states(params, cfg, tokens), atol=1e-6)
  with pytest.raises(ValueError, match='several vectors'):
    encoder.encode(params, cfg, tokens)
  one = encoder.encode_vectors(params, dataclasses.replace(
      cfg, pooling=config.PoolingConfig(), normalize=False), tokens)
  assert one.values.shape == (len(tokens.ids), 1, 32) and np.asarray(one.mask).all()


def test_options_of_a_kind_are_its_own(scratch):
  tokens = tiny_step.batches(1)[0].query
  cfg = dataclasses.replace(tiny_step.model('power'), normalize=False)
  params = encoder.init_params(cfg, jax.random.key(0))
  states = np.abs(np.asarray(encoder.hidden_states(params, cfg, tokens), np.float64))
  for options, power in (((), 2), ([['power', 3.0]], 3)):  # a list, as JSON gives it
    now = dataclasses.replace(cfg, pooling=config.PoolingConfig(
        kind='power', options=options))
    want = [(row[keep] ** power).mean(0) ** (1 / power)
            for row, keep in zip(states, np.asarray(tokens.mask))]
    np.testing.assert_allclose(encoder.encode(params, now, tokens), want, rtol=1e-4)
  for kind, options, said in (
      ('mean', (('power', 2.0),), 'mean pooling does not read; it reads none'),
      ('power', (('pover', 2.0),), "'pover', which power pooling does not read"),
      ('power', (('power', 'two'),), "'power' = 'two'; give a number")):
    with pytest.raises(ValueError, match=said):
      heads.of(config.PoolingConfig(kind=kind, options=options))


TWIN = '''
import torch
from sentence_transformers.base.modules.module import Module

class Scratch(Module):
  config_keys = ['embedding_dimension', 'include_prompt', 'power', 'gated']

  def __init__(self, embedding_dimension, include_prompt, power=0.0, gated=False):
    super().__init__()
    self.embedding_dimension, self.include_prompt = embedding_dimension, include_prompt
    self.power, self.gated = power, gated
    if not power:
      self.gate = torch.nn.Parameter(torch.zeros(embedding_dimension))

  def forward(self, features, **_):
    x, mask = features['token_embeddings'], features['attention_mask'].unsqueeze(-1)
    if self.power:
      x = (x.abs() ** self.power * mask).sum(1) / mask.sum(1).clamp(min=1)
      x = x ** (1 / self.power)
    else:
      weight = torch.sigmoid(x @ self.gate).unsqueeze(-1) * mask
      x = (x * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
    return features | {'sentence_embedding': x}

  def get_embedding_dimension(self):
    return self.embedding_dimension

  def save(self, output_path, *args, **_):
    self.save_config(output_path)

  @classmethod
  def load(cls, path, subfolder='', token=None, cache_folder=None, revision=None,
           local_files_only=False, **_):
    where = dict(subfolder=subfolder, token=token, cache_folder=cache_folder,
                 revision=revision, local_files_only=local_files_only)
    module = cls(**cls.load_config(path, **where))
    return module if module.power else cls.load_torch_weights(
        path, model=module, **where)
'''


@pytest.mark.parametrize('kind, options', [
    ('gated', ()), thorough('power', (('power', 3.0),))])
def test_a_new_pooling_trains_leaves_and_is_opened_again(
    kind, options, minilm, tmp_path, monkeypatch):
  st = pytest.importorskip('sentence_transformers')
  (tmp_path / 'twin.py').write_text(TWIN)
  head = next(h for h in SCRATCH if h.kind == kind)
  monkeypatch.setitem(heads.HEADS, kind, dataclasses.replace(
      head, tensors=lambda cfg: (Tensor('gate', 'gate'),) if head.init else (),
      twin=Twin(str(tmp_path / 'twin.py'), f'scratch_{kind}', 'Scratch',
                tuple((name, name) for name in head.options))))
  cfg = tiny_run.in_folder(tmp_path, minilm, steps=2)
  cfg.model.pooling = config.PoolingConfig(kind=kind, options=options)
  loop.train(cfg, tmp_path / 'run', log=lambda _: None)
  ours = Embedder.load(tmp_path / 'run')
  assert ours.cfg.pooling.options == options
  ours.save(tmp_path / 'out')
  texts = ['one', 'a longer text of words']
  theirs = st.SentenceTransformer(
      str(tmp_path / 'out'), device='cpu', trust_remote_code=True)
  for other in (theirs, Embedder.load(tmp_path / 'out')):
    np.testing.assert_allclose(ours.encode(texts), other.encode(texts), atol=1e-5)
  beside = dataclasses.replace(ours.bundle, cfg=dataclasses.replace(
      ours.cfg, pooling=config.PoolingConfig(kind='mean+power')))
  if kind == 'power':
    with pytest.raises(ValueError, match='power pooling beside others'):
      exporters.export(beside, tmp_path / 'other')
