"""Each parameter gets the update its path asks for."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxembed import config
from jaxembed.train import optim, step
from tests.helpers import tiny_step

PARAMS = {
    'backbone': {'attn': {'kernel': jnp.ones((2, 3, 3))},
                 'norm': {'scale': jnp.ones((2, 3))}},
    'pooling': {'out': {'kernel': jnp.ones((3, 3))}},
}


def _updates(cfg, grads=None, steps=10):
  tx = optim.make_optimizer(cfg, steps, PARAMS)
  grads = jax.tree.map(jnp.zeros_like, PARAMS) if grads is None else grads
  return tx.update(grads, tx.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'sgd'])
def test_weight_decay_falls_on_kernels_alone(name):
  cfg = config.OptimConfig(name=name, peak_lr=0.1, warmup_steps=0, weight_decay=0.5,
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


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'sgd'])
def test_a_path_has_its_own_learning_rate(name):
  def updates(**options):
    cfg = config.OptimConfig(name=name, peak_lr=0.1, weight_decay=0.5, clip_norm=1.0,
                             warmup_steps=0, **options)
    return _updates(cfg, jax.tree.map(lambda p: p * 0.3, PARAMS))

  plain = updates()
  got = updates(lr_factors=(('norm', 0.25), ('backbone', 2.0)))
  for part, factor in ((('norm', 'scale'), 0.25), (('attn', 'kernel'), 2.0)):
    np.testing.assert_allclose(got['backbone'][part[0]][part[1]],
                               factor * plain['backbone'][part[0]][part[1]], rtol=1e-6)
  chex.assert_trees_all_equal(got['pooling'], plain['pooling'])
  with pytest.raises(ValueError, match="'bakbone' decides for no trained parameter"):
    updates(lr_factors=(('bakbone', 2.0),))
  with pytest.raises(ValueError, match='give one above 0, or freeze'):
    updates(lr_factors=(('backbone', 0.0),))


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


def _newton_schulz(g):
  """Jordan's quintic iteration in float64: about U V^T of g = U S V^T."""
  x = g.T if g.shape[0] > g.shape[1] else g
  x = x / (np.linalg.norm(x) + 1e-7)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if g.shape[0] > g.shape[1] else x


def test_muon_is_the_published_loop_on_every_layers_matrix_and_adamw_elsewhere():
  """github.com/KellerJordan/Muon with the scale and decay of arXiv 2502.16982."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: np.float32(rng.normal(size=shape))
  params = {'backbone': {'embed': {'token': draw(9, 4)}, 'layers': {
      'attn': {'q': {'kernel': draw(3, 4, 6)}}, 'mlp': {'down': {
          'kernel': draw(3, 8, 4), 'bias': draw(3, 4)}}}},
            'pooling': {'out': {'kernel': draw(4, 4)}}}
  cfg = config.OptimConfig(name='muon', peak_lr=0.1, warmup_steps=0, clip_norm=0.0,
                           schedule='constant', weight_decay=0.03)
  tx, plain = (optim.make_optimizer(c, 10, params)
               for c in (cfg, dataclasses.replace(cfg, name='adamw')))
  state, plain_state, moving = tx.init(params), plain.init(params), params
  kernels = lambda tree: {k: np.float64(v) for k, v in optim_names(tree).items()
                          if 'layers' in k and k.endswith('kernel')}
  weights = kernels(params)
  momentum = {k: np.zeros_like(w) for k, w in weights.items()}
  for _ in range(4):
    grads = jax.tree.map(lambda x: draw(*x.shape), params)
    updates, state = tx.update(grads, state, moving)
    others, plain_state = plain.update(grads, plain_state, moving)
    moving = optax.apply_updates(moving, updates)
    for k, g in kernels(grads).items():
      momentum[k] = 0.95 * momentum[k] + g
      step_of = np.stack([_newton_schulz(x) for x in g + 0.95 * momentum[k]])
      step_of *= 0.2 * np.sqrt(max(g.shape[1:]))
      weights[k] -= 0.1 * (step_of + 0.03 * weights[k])
    got, want = optim_names(updates), optim_names(others)
    for k in got.keys() - weights.keys():
      np.testing.assert_array_equal(got[k], want[k], err_msg=k)
  for k, w in weights.items():
    np.testing.assert_allclose(kernels(moving)[k], w, atol=2e-5, err_msg=k)


def optim_names(tree) -> dict[str, np.ndarray]:
  """Leaves by path."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x)
          for path, x in jax.tree.leaves_with_path(tree)}


def test_adafactor_treats_every_layer_as_a_matrix_of_its_own():
  """Shazeer and Stern 2018, algorithm 4, in float64, layer by layer."""
  rng = np.random.default_rng(0)
  scale = np.array([1e-3, 1.0, 30.0])[:, None, None]
  weights = np.float32(rng.normal(size=(3, 128, 160)) * scale)
  params = {'backbone': {'layers': {'up': {'kernel': weights}}}}
  cfg = config.OptimConfig(name='adafactor', peak_lr=0.01, warmup_steps=0,
                           schedule='constant', weight_decay=0.1, clip_norm=0.0)
  tx = optim.make_optimizer(cfg, 5, params)
  state, moving = tx.init(params), params
  want = np.float64(weights)
  rows, columns = np.zeros((3, 128)), np.zeros((3, 160))
  for t in range(1, 4):
    g = np.float32(rng.normal(size=weights.shape) * [[[1.0]], [[5.0]], [[0.01]]])
    updates, state = tx.update(
        {'backbone': {'layers': {'up': {'kernel': g}}}}, state, moving)
    moving = optax.apply_updates(moving, updates)
    keep = 1 - t**-0.8
    for i in range(3):
      square = np.float64(g[i])**2 + 1e-30
      rows[i] = keep * rows[i] + (1 - keep) * square.mean(1)
      columns[i] = keep * columns[i] + (1 - keep) * square.mean(0)
      u = g[i] / np.sqrt(np.outer(rows[i], columns[i]) / rows[i].mean())
      u /= max(1.0, np.sqrt((u**2).mean()))
      u *= max(1e-3, np.sqrt((want[i]**2).mean()))
      want[i] -= 0.01 * (u + 0.1 * want[i])
  got = np.asarray(moving['backbone']['layers']['up']['kernel'])
  np.testing.assert_allclose(got / scale, want / scale, atol=2e-5)


@pytest.mark.thorough
def test_adapters_decay_as_peft_and_torch_decay_them():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  draw = lambda *shape: np.float32(rng.normal(size=shape))
  params = {'backbone': {'layers': {'q': {'lora_a': draw(2, 6, 3),
                                          'lora_b': draw(2, 3, 4)}}},
            'pooling': {'out': {'kernel': draw(4, 4), 'bias': draw(4)}}}
  cfg = config.OptimConfig(peak_lr=0.01, warmup_steps=0, schedule='constant',
                           weight_decay=0.5, clip_norm=0.7)
  tx = optim.make_optimizer(cfg, 9, params)
  state, moving = tx.init(params), params
  theirs = {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float64))
            for k, v in optim_names(params).items()}
  adamw = torch.optim.AdamW(
      [{'params': [p], 'weight_decay': 0.0 if k.endswith('bias') else 0.5}
       for k, p in theirs.items()], lr=0.01)
  for _ in range(3):
    grads = jax.tree.map(lambda x: draw(*x.shape), params)
    updates, state = tx.update(grads, state, moving)
    moving = optax.apply_updates(moving, updates)
    for k, g in optim_names(grads).items():
      theirs[k].grad = torch.tensor(g, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_(theirs.values(), 0.7)
    adamw.step()
  for k, x in optim_names(moving).items():
    np.testing.assert_allclose(x, theirs[k].detach().numpy(), atol=1e-6, err_msg=k)


def test_a_warm_up_longer_than_the_stage_is_shortened_and_told():
  cfg = config.OptimConfig(peak_lr=1.0, warmup_steps=50)
  rates = [float(optim.make_schedule(cfg, 20)(i)) for i in range(20)]
  np.testing.assert_allclose(rates[:3], [0.5, 1.0, 1.0])
  assert 0 < rates[-1] < 0.1
  [told] = optim.notes(cfg, 20)
  assert 'warmup_steps=50' in told and 'shortened to 2' in told
  assert optim.notes(cfg, 50) == []  # reaches its peak at its end, as asked


def test_a_peak_of_zero_stays_there():
  for schedule in ('linear', 'cosine', 'constant'):
    cfg = config.OptimConfig(peak_lr=0.0, head_lr=0.1, schedule=schedule)
    assert float(optim.make_schedule(cfg, 90)(70)) == 0
    assert float(optim.make_schedule(cfg, 90, cfg.head_lr)(70)) > 0


def test_what_an_optimiser_does_not_use_is_told():
  cfg = config.OptimConfig(name='sgd', b2=0.9, schedule='constant', end_lr=1e-6)
  told = optim.notes(cfg, 100)
  assert [t.split('=')[0] for t in told] == ['optim.b2', 'optim.end_lr']


def test_a_freeze_that_matches_nothing_is_refused():
  with pytest.raises(ValueError, match="freeze='bakbone' matches no parameter"):
    optim.trainable(PARAMS, config.OptimConfig(freeze='bakbone'))


def test_muon_without_a_kernel_to_move_is_refused():
  with pytest.raises(ValueError, match="use 'adamw'"):
    optim.make_optimizer(config.OptimConfig(name='muon'), 10, PARAMS['pooling'])


@pytest.mark.thorough
@pytest.mark.parametrize('shape', [(2, 2, 2), (4, 2, 1)])
def test_muon_is_the_same_on_any_mesh(shape):
  stage = dataclasses.replace(tiny_step.STAGE, optim=config.OptimConfig(
      name='muon', peak_lr=1e-3, warmup_steps=2))
  data = tiny_step.batches(5)
  alone, _ = tiny_step.curve(tiny_step.model(), stage, (1, 1, 1), data)
  spread, state = tiny_step.curve(tiny_step.model(), stage, shape, data)
  np.testing.assert_allclose(spread, alone, atol=1e-5, rtol=0)
  kernel = state.params['backbone']['layers']['mlp']['up']['kernel']
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
  assert kernel.sharding in [x.sharding for x in moments]


def test_clipping_bounds_the_whole_gradient():
  cfg = config.OptimConfig(name='sgd', b1=0.0, peak_lr=1.0, warmup_steps=0,
                           schedule='constant', clip_norm=0.5, weight_decay=0.0)
  got = _updates(cfg, jax.tree.map(lambda x: 100 * jnp.ones_like(x), PARAMS))
  norm = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(got)))
  np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'sgd', 'muon'])
def test_a_carried_optimiser_goes_on_as_if_nothing_had_ended(name):
  params = {'backbone': {'layers': {'attn': {'kernel': jnp.ones((2, 3, 3))}}},
            'pooling': {'scale': jnp.ones(3)}}
  stage = config.StageConfig(steps=3, optim=config.OptimConfig(
      name=name, peak_lr=0.1, warmup_steps=0, schedule='constant',
      keep_optimizer_state=True))
  rng = np.random.default_rng(0)
  grads = [jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
           for _ in range(6)]
  tx = optim.make_optimizer(stage.optim, stage.steps, params)

  def run(state, moving, grads):
    for g in grads:
      updates, state = tx.update(g, state, moving)
      moving = optax.apply_updates(moving, updates)
    return state, moving

  _, whole = run(tx.init(params), params, grads)
  state, half = run(tx.init(params), params, grads[:3])
  carried = step.init_state(half, stage, 3, state)
  chex.assert_trees_all_equal(run(carried.opt_state, half, grads[3:])[1], whole)
  anew = step.init_state(half, stage, 3)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(run(anew.opt_state, half, grads[3:])[1], whole)


def test_a_carried_optimiser_begins_its_schedule_anew():
  cfg = config.OptimConfig(name='sgd', b1=0.0, peak_lr=1.0, warmup_steps=4,
                           clip_norm=0.0, weight_decay=0.0)
  tx = optim.make_optimizer(cfg, 8, PARAMS)
  ones = jax.tree.map(jnp.ones_like, PARAMS)
  state = tx.init(PARAMS)
  for _ in range(6):
    _, state = tx.update(ones, state, PARAMS)
  updates, _ = tx.update(ones, optim.carry(state, tx.init(PARAMS)), PARAMS)
  np.testing.assert_allclose(updates['pooling']['out']['kernel'], -0.25)


def test_adafactor_is_carried_whether_or_not_weights_decay():
  first, second = (optim.make_optimizer(
      config.OptimConfig(name='adafactor', weight_decay=w), 8, PARAMS)
      for w in (0.01, 0.0))
  state = first.init(PARAMS)
  chex.assert_trees_all_equal(
      optim.carry(state, jax.eval_shape(second.init, PARAMS)), state)


def test_a_carried_optimiser_may_get_factors():
  first, second = (optim.make_optimizer(config.OptimConfig(lr_factors=f), 8, PARAMS)
                   for f in ((), (('norm', 2.0),)))
  state = first.init(PARAMS)
  chex.assert_trees_all_equal(
      optim.carry(state, jax.eval_shape(second.init, PARAMS)), state)


def test_a_carried_optimiser_of_other_parameters_is_refused():
  cfg = config.OptimConfig()
  whole = optim.make_optimizer(cfg, 8, PARAMS).init(PARAMS)
  head = {'pooling': PARAMS['pooling']}
  with pytest.raises(ValueError, match='set it to False'):
    optim.carry(whole, optim.make_optimizer(cfg, 8, head).init(head))


def test_norms_by_layer_add_up_to_the_norm_of_the_whole():
  grads = {'backbone': {'layers': {'up': {'kernel': jnp.float32([[3.0], [5.0]])},
                                   'down': {'kernel': jnp.float32([[4.0], [12.0]])}},
                        'embed': {'token': jnp.full((2, 2), 2.0)}},
           'pooling': {'out': {'kernel': jnp.full((3, 3), 1.0)}}}
  got = optim.norms(grads)
  assert {k: float(v) for k, v in got.items()} == {
      'grad_norm/layer_00': 5.0, 'grad_norm/layer_01': 13.0, 'grad_norm/embed': 4.0,
      'grad_norm/pooling': 3.0}
  np.testing.assert_allclose(sum(float(v)**2 for v in got.values()),
                             float(optax.tree.norm(grads))**2, rtol=1e-6)
