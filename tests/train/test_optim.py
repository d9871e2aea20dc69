"""Each parameter gets the update its path asks for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config
from jaxembed.train import optim

PARAMS = {
    'backbone': {'attn': {'kernel': jnp.ones((2, 3, 3))},
                 'norm': {'scale': jnp.ones((2, 3))}},
    'pooling': {'out': {'kernel': jnp.ones((3, 3))}},
}


def _updates(cfg, grads=None, steps=10):
  tx = optim.make_optimizer(cfg, steps, PARAMS)
  grads = jax.tree.map(jnp.zeros_like, PARAMS) if grads is None else grads
  return tx.update(grads, tx.init(PARAMS), PARAMS)[0]


def test_weight_decay_falls_on_kernels_alone():
  cfg = config.OptimConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.5,
                           schedule='constant')
  got = _updates(cfg)
  np.testing.assert_allclose(got['backbone']['attn']['kernel'], -0.05)
  np.testing.assert_allclose(got['backbone']['norm']['scale'], 0)


def test_head_has_its_own_learning_rate():
  cfg = config.OptimConfig(peak_lr=0.1, head_lr=0.4, warmup_steps=0,
                           weight_decay=0.0, schedule='constant', clip_norm=0.0)
  got = _updates(cfg, jax.tree.map(jnp.ones_like, PARAMS))
  np.testing.assert_allclose(got['backbone']['norm']['scale'], -0.1, rtol=1e-5)
  np.testing.assert_allclose(got['pooling']['out']['kernel'], -0.4, rtol=1e-5)


def test_frozen_paths_do_not_move():
  cfg = config.OptimConfig(peak_lr=0.1, warmup_steps=0, freeze='^backbone/')
  mask = optim.trainable(PARAMS, cfg)
  assert not any(jax.tree.leaves(mask['backbone']))
  assert all(jax.tree.leaves(mask['pooling']))
  moving, fixed = optim.split(PARAMS, mask)
  assert jax.tree.leaves(moving) == jax.tree.leaves(PARAMS['pooling'])
  assert jax.tree.structure(optim.join(moving, fixed)) == jax.tree.structure(PARAMS)
  with pytest.raises(ValueError, match='leaves nothing to train'):
    optim.trainable(PARAMS, config.OptimConfig(freeze='.'))


def test_adapters_train_alone_beside_the_head():
  params = PARAMS | {'backbone': {'attn': {
      'kernel': jnp.ones(2), 'lora_a': jnp.ones(2), 'lora_b': jnp.ones(2)}}}
  mask = optim.trainable(params, config.OptimConfig())
  assert mask['backbone']['attn'] == {
      'kernel': False, 'lora_a': True, 'lora_b': True}
  assert mask['pooling']['out']['kernel']


@pytest.mark.parametrize('shape', ['linear', 'cosine', 'constant'])
def test_schedule_warms_up_peaks_and_ends(shape):
  cfg = config.OptimConfig(peak_lr=1.0, warmup_steps=4, schedule=shape, end_lr=0.1)
  lr = [float(optim.make_schedule(cfg, 20)(i)) for i in range(21)]
  np.testing.assert_allclose(lr[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
  assert lr[4] == 1.0
  np.testing.assert_allclose(lr[20], 1.0 if shape == 'constant' else 0.1, rtol=1e-6)
  assert all(a >= b for a, b in itertools.pairwise(lr[4:]))


def test_clipping_bounds_the_whole_gradient():
  cfg = config.OptimConfig(name='sgd', b1=0.0, peak_lr=1.0, warmup_steps=0,
                           schedule='constant', clip_norm=0.5)
  got = _updates(cfg, jax.tree.map(lambda x: 100 * jnp.ones_like(x), PARAMS))
  norm = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(got)))
  np.testing.assert_allclose(norm, 0.5, rtol=1e-5)
