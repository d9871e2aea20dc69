"""A pooling is one record: what a new one has to bring, and what follows from it."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jaxembed import config
from jaxembed.models import encoder
from jaxembed.pooling import heads
from jaxembed.pooling.head import Head, Vectors, of_each_text
from tests.helpers import tiny_step


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


SCRATCH = (
    Head(kind='middle', apply=_middle, words='the middle of its ends'),
    Head(kind='gated', apply=_gated, words='a gated mean',
         init=lambda cfg, dim, layers, key: {'gate': jax.random.normal(key, (dim,))},
         rules=((r'pooling/gate$', P()),)),
    Head(kind='tokens', apply=_tokens, words='its tokens'),
)


@pytest.fixture
def scratch(monkeypatch):
  for head in SCRATCH:
    monkeypatch.setitem(heads.HEADS, head.kind, head)


@pytest.mark.parametrize('kind', ['middle', 'gated'])
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
