"""Running means and averaged checkpoints, against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import checkpoint, config, sharding, workdir
from jaxembed.convert import tables
from jaxembed.models import encoder
from jaxembed.train import average, ema, loop, step
from tests.helpers import tiny_run, tiny_step

pytestmark = pytest.mark.usefixtures('compiled_once')


def test_means_follow_the_parameters_as_in_numpy():
  stage = dataclasses.replace(tiny_step.STAGE, optim=config.OptimConfig(
      peak_lr=1e-2, warmup_steps=0, ema_decay=0.4, freeze='embed'))
  model = tiny_step.model()
  mesh = tiny_step.mesh((4, 2, 1))
  with jax.set_mesh(mesh):
    params = encoder.init_params(model, jax.random.key(1))
    state = step.init_state(params, stage, step=5)
    update = step.make_update(model, stage, seed=0, first_step=5)
    q = lambda tree: tree['backbone']['layers']['attn']['q']['kernel']
    mean = np.asarray(q(state.params))
    for count, batch in enumerate(tiny_step.batches(4), 1):
      state, _ = update(state, sharding.to_global(mesh, batch))
      keep = min(0.4, (1 + count) / (10 + count))
      mean = keep * mean + (1 - keep) * np.asarray(q(state.params))
      np.testing.assert_allclose(q(state.averaged), mean, rtol=2e-6, atol=1e-7)
    assert q(state.ema).sharding == q(state.params).sharding
    assert state.ema['backbone']['embed']['token'] is None  # does not move
    token = state.averaged['backbone']['embed']['token']
    assert token is state.params['backbone']['embed']['token']


def test_a_mean_of_bfloat16_parameters_is_kept_in_float32():
  x = {'w': jnp.ones(3, jnp.bfloat16)}
  means = ema.update(ema.init(x), {'w': x['w'] * 2}, jnp.int32(90), 0.999)
  assert means['w'].dtype == jnp.float32
  np.testing.assert_allclose(means['w'], 0.91 + 2 * 0.09, rtol=1e-6)


@pytest.mark.parametrize('decay', [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay):
  with pytest.raises(ValueError, match='OptimConfig.ema_decay'):
    config.OptimConfig(ema_decay=decay)


@pytest.fixture(scope='module')
def runs(tmp_path_factory, minilm):
  """(the experiment, the folder of its run), with means and two stages."""
  folder = tmp_path_factory.mktemp('ema')
  cfg = tiny_run.in_folder(folder, minilm, steps=3, ema_decay=0.9)
  cfg.stages.append(dataclasses.replace(cfg.stages[0], name='second'))
  cfg.checkpoint = config.CheckpointConfig(every=1, keep=9)
  loop.train(cfg, folder / 'run', log=lambda _: None)
  return cfg, folder / 'run'


def _flat(tree):
  return {k: np.asarray(v) for k, v in tables.flatten(tree).items()}


@pytest.mark.thorough
def test_evaluation_and_the_finished_model_take_the_means(runs, tmp_path):
  cfg, run = runs
  seen = {}

  def evaluate(params, *_):
    seen[len(seen)] = _flat(params)
    return {}

  notices = iter(range(1, 9))
  loop.train(cfg, tmp_path, log=lambda _: None, should_stop=lambda: next(notices) == 4)
  state, _ = loop.train(cfg, tmp_path, evaluate=evaluate, log=lambda _: None)
  end, last = _flat(tiny_run.parameters(run)), _flat(state.averaged)
  plain = _flat(state.params)
  for path, value in seen[max(seen)].items():
    np.testing.assert_array_equal(value, last[path])
    np.testing.assert_array_equal(value, end[path])  # exact after a stop, too
  assert any(np.any(plain[path] != last[path]) for path in plain)


@pytest.mark.thorough
def test_the_mean_of_checkpoints_is_numpys(runs, tmp_path):
  _, run = runs
  went = average.average([run], tmp_path / 'mean', last=3)
  assert went == [(run, 4), (run, 5), (run, 6)]
  parts = [_flat(checkpoint.load_params(run / 'checkpoints', s)[0]) for s in (4, 5, 6)]
  params, model, _, at = workdir.load(tmp_path / 'mean')
  assert at == 6 and model == workdir.load_model_config(run)
  for path, value in _flat(params).items():
    np.testing.assert_allclose(
        value, np.mean([p[path] for p in parts], 0), rtol=1e-6, atol=1e-8)
  with pytest.raises(FileExistsError, match='is there'):
    average.average([run], tmp_path / 'mean')
  with pytest.raises(ValueError, match='its last 7 cannot'):
    average.average([run], tmp_path / 'more', last=7)


def test_trees_of_other_shapes_are_refused_by_path():
  a, b = {'x': {'w': np.ones((2, 3))}}, {'x': {'w': np.ones((3, 2))}}
  with pytest.raises(ValueError, match=r'x/w of shape \(2, 3\), checkpoint 2 of'):
    average.mean([a, b])
  with pytest.raises(ValueError, match='x/v of shape None'):
    average.mean([a, {'x': {'w': a['x']['w'], 'v': np.ones(1)}}])
  with pytest.raises(ValueError, match='nothing to average'):
    average.mean([])
