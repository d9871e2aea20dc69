"""A loss of the user's own, through the step that trains on any."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config, losses
from jaxembed.models import encoder
from jaxembed.train import step
from tests.helpers.tiny_step import STAGE, batches, mesh, model

_encode = jax.jit(encoder.encode, static_argnums=1)


def alignment(query, passage, pairing, cfg, params):
  """Wang & Isola 2020: squared distance of a query and its positive, times 2."""
  del cfg, params
  rows = jnp.square(query - passage[::2]).sum(-1)
  return losses.Result(2 * rows.mean(), 2 * rows, {'loss/alignment': rows.mean()})


def test_an_update_minimises_the_loss_that_is_given():
  cfg, (batch,) = model(), batches(1)
  with jax.set_mesh(mesh((1, 1, 1))):
    state = step.init_state(encoder.init_params(cfg, jax.random.key(1)), STAGE)
    query, passage = (_encode(state.params, cfg, x)
                      for x in (batch.query, batch.passage))
    update = step.make_update(cfg, STAGE, seed=0, loss=alignment)
    want = 2 * np.square(np.asarray(query - passage[::2])).sum(-1)
    state, first = update(state, batch)
    for _ in range(3):
      state, last = update(state, batch)
  np.testing.assert_allclose(first['train/loss'], want.mean(), rtol=1e-5)
  np.testing.assert_allclose(first['loss/alignment'], want.mean() / 2, rtol=1e-5)
  assert 'loss/info_nce' not in first
  assert last['train/loss'] < first['train/loss']


def test_a_row_of_the_table_makes_a_loss_that_configurations_name(monkeypatch):
  def to_the_power(query, passage, pairing, cfg, params):
    del pairing, params
    rows = jnp.square(query - passage[::2]).sum(-1) ** cfg.option('power')
    return losses.Result(rows.mean(), rows, {'loss/power': rows.mean()})

  monkeypatch.setitem(losses.LOSSES, 'to_the_power', losses.Named(
      to_the_power, {'power': 1.0}))
  cfg, (batch,) = model(), batches(1)
  distance = []
  for options in ((), (('power', 2.0),)):
    stage = dataclasses.replace(STAGE, loss=config.LossConfig(
        name='to_the_power', options=options))
    assert config.from_dict(config.StageConfig, json.loads(json.dumps(
        config.to_dict(stage)))) == stage
    with jax.set_mesh(mesh((1, 1, 1))):
      state = step.init_state(encoder.init_params(cfg, jax.random.key(1)), stage)
      value, metrics = jax.jit(lambda p, stage=stage: step.loss_and_metrics(
          p, batch, cfg, stage, jax.random.key(0)))(state.params)
      query, passage = (np.asarray(_encode(state.params, cfg, x))
                        for x in (batch.query, batch.passage))
    distance.append(float(value))
    assert 'loss/power' in metrics
  want = np.square(query - passage[::2]).sum(-1)
  np.testing.assert_allclose(distance, [want.mean(), (want**2).mean()], rtol=1e-5)
  with pytest.raises(ValueError, match="'power' = 'two'; give a number"):
    losses.named(config.LossConfig(name='to_the_power', options=(('power', 'two'),)))
