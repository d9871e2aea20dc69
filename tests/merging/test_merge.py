"""Merges are the published formulas in float64; equal models merge to themselves."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.convert import tables
from jaxembed.merging import arithmetic, merge, position, slerp
from jaxembed.models import encoder, lora, presets
from tests.helpers.tiers import after

Options = arithmetic.Options
CFG = config.ModelConfig(backbone=presets.tiny('bert', dim=8, ff_dim=16, head_dim=2))


def _model(seed: int, cfg=CFG, dtype=jnp.float32, **fields) -> bundle.Bundle:
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda s: jnp.asarray(0.02 * rng.normal(size=s.shape), dtype),
                        encoder.param_shapes(cfg))
  return bundle.Bundle(params=params, cfg=cfg, source=f'model {seed}', **fields)


@pytest.fixture(scope='module')
def models():
  return [_model(i) for i in range(3)]


def _arrays(model):
  return {k: np.asarray(x) for k, x in tables.flatten(model.params).items()}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('method', arithmetic.METHODS)
def test_a_model_merged_with_itself_is_itself_bit_for_bit(method, dtype):
  model, start = _model(3, dtype=dtype), _model(4, dtype=dtype)
  # Where the start is large beside it, differences in float32 would be lost.
  start = dataclasses.replace(start, params=jax.tree.map(
      lambda x: x.at[..., ::2].mul(1e9), start.params))
  base = start if arithmetic.METHODS[method].base != 'unused' else None
  for weights in ((), (0.3, 0.5, 0.2)):
    merged = merge.merge([model] * 3, method, base=base,
                         options=Options(weights=weights))
    for path, x in _arrays(model).items():
      assert _arrays(merged)[path].dtype == x.dtype
      assert _arrays(merged)[path].tobytes() == x.tobytes(), path


def _loop_slerp(a, b, t):
  """Shoemake's formula, as mergekit has it."""
  unit = [x / np.linalg.norm(x) for x in (a, b)]
  angle = np.arccos(np.sum(unit[0] * unit[1]))
  return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def _loop_ties(xs, start, weights, density, scale):
  """mergekit's ties: trimmed deltas times weights, sign of the sum, their mean."""
  deltas = []
  for x, w in zip(xs, weights):
    v = (x - start).reshape(-1)
    k = max(int(density * v.size), 1)
    kept = np.argsort(-np.abs(v), kind='stable')[:k]
    sparse = np.zeros_like(v)
    sparse[kept] = v[kept]
    deltas.append(w * sparse.reshape(x.shape))
  stacked = np.stack(deltas)
  mask = (np.sign(stacked) == np.sign(stacked.sum(0))) & (stacked != 0)
  divisor = (mask * np.reshape(weights, (-1,) + (1,) * xs[0].ndim)).sum(0)
  mixed = (stacked * mask).sum(0) / np.where(divisor < 1e-8, 1, divisor)
  return start + scale * mixed


def test_methods_are_their_published_formulas(models):
  rng = np.random.default_rng(0)
  start, *xs = rng.normal(size=(4, 5, 7))
  w = (0.5, 0.3, 0.2)
  run = lambda name, tensors, options, base=start: (
      arithmetic.METHODS[name].merge(tensors, base, options))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
  close(run('soup', xs, Options(weights=w)), sum(a * x for a, x in zip(w, xs)))
  close(run('task_arithmetic', xs, Options(weights=(1., 1., -1.), scale=.4)),
        start + .4 * (xs[0] + xs[1] - xs[2] - start))
  close(run('slerp', xs[:2], Options(weights=(.7, .3)), None),
        _loop_slerp(xs[0], xs[1], .3))
  v = [x - start for x in xs]
  close(run('slerp', xs, Options(weights=w)), start + _loop_slerp(
      _loop_slerp(v[0], v[1], .3 / .8), v[2], .2))
  for density, scale in ((1., 1.), (.2, 1.), (.5, .7)):
    close(run('ties', xs, Options(weights=w, density=density, scale=scale)),
          _loop_ties(xs, start, w, density, scale))

  # A stacked parameter is merged layer by layer, as tensors of a checkpoint are.
  merged = _arrays(merge.merge(models[:2], 'slerp', options=Options(weights=(.6, .4))))
  path = 'backbone/layers/attn/q/kernel'
  a, b = (_arrays(m)[path].astype(np.float64) for m in models[:2])
  for layer in range(len(a)):
    np.testing.assert_allclose(
        merged[path][layer], _loop_slerp(a[layer], b[layer], .4), rtol=1e-6)
  whole = _arrays(merge.merge(models[:2], 'slerp', options=Options(
      weights=(.6, .4), whole=True)))
  join = lambda m: np.concatenate([x.reshape(-1) for x in m.values()]).astype(float)
  np.testing.assert_allclose(join(whole), _loop_slerp(
      join(_arrays(models[0])), join(_arrays(models[1])), .4), rtol=1e-5, atol=1e-9)


def test_slerp_keeps_ends_and_lengths():
  rng = np.random.default_rng(1)
  a, b = rng.normal(size=(2, 50))
  b *= np.linalg.norm(a) / np.linalg.norm(b)
  gram = slerp.gram([a, b])
  for t in (0., .25, 1.):
    x = slerp.coefficients(gram, [t]) @ [a, b]
    np.testing.assert_allclose(np.linalg.norm(x), np.linalg.norm(a), rtol=1e-12)
  assert (slerp.coefficients(gram, [0.]) == [1, 0]).all()
  np.testing.assert_allclose(slerp.coefficients(gram, [1.]), [0, 1], atol=1e-15)
  for other in (a, -a, np.zeros(50)):  # no arc is defined: a chord
    np.testing.assert_allclose(
        slerp.coefficients(slerp.gram([a, other]), [.25]), [.75, .25])


def test_adapters_are_folded_before_they_are_merged():
  cfg = dataclasses.replace(CFG, lora=config.LoraConfig(rank=2))
  adapted = [_model(i, cfg) for i in (5, 6)]
  merged = merge.merge(adapted)
  assert merged.cfg.lora is None
  folded = [_arrays(dataclasses.replace(m, params=lora.merge(m.params, m.cfg)[0]))
            for m in adapted]
  for path, x in _arrays(merged).items():
    mean = np.mean([f[path].astype(float) for f in folded], 0)
    np.testing.assert_allclose(x, mean, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('other, told', [
    (_model(1, dataclasses.replace(CFG, backbone=presets.tiny(
        'bert', dim=8, ff_dim=24, head_dim=2))), 'backbone/layers/mlp/down/kernel'),
    (_model(1, dataclasses.replace(CFG, pooling=config.PoolingConfig(kind='cls'))),
     "pooling.kind: 'mean' and 'cls'"),
    (_model(1, dataclasses.replace(CFG, backbone=dataclasses.replace(
        CFG.backbone, norm_eps=1e-3))), 'backbone.norm_eps'),
    (_model(1, dataclasses.replace(CFG, dense=(config.DenseConfig(features=4),))),
     'dense/0/bias: absent')])
def test_models_that_differ_are_refused_by_name(models, other, told):
  with pytest.raises(ValueError, match=told.replace('.', r'\.')):
    merge.merge([models[0], other])


def test_vocabularies_that_differ_are_refused(models, tmp_path, minilm):
  text = (minilm / 'tokenizer.json').read_text()
  folders = [tmp_path / name for name in 'ab']
  for folder in folders:
    folder.mkdir()
  spec = json.loads(text)
  vocab = spec['model']['vocab']
  vocab['cat'], vocab['dog'] = vocab['dog'], vocab['cat']
  (folders[0] / 'tokenizer.json').write_text(text)
  (folders[1] / 'tokenizer.json').write_text(json.dumps(spec))
  pair = [dataclasses.replace(m, tokenizer_folder=f) for m, f in zip(models, folders)]
  with pytest.raises(ValueError, match='different tokenizers.*(cat|dog)'):
    merge.merge(pair)


@pytest.mark.parametrize('method, base, options, told', [
    ('ties', False, Options(), 'name it as base'),
    ('soup', True, Options(), 'does not use a base'),
    ('soup', False, Options(scale=2.), 'does not read scale'),
    ('slerp', False, Options(density=.5), 'does not read density'),
    ('soup', False, Options(weights=(1., 2., 3.)), 'do not belong to 2'),
    ('soup', False, Options(weights=(1., -1.)), '0 or more'),
    ('ties', True, Options(density=0.), 'density is 0'),
    ('task_arithmetic', True, Options(scale=1e300), 'not finite'),
    ('mean', False, Options(), 'choose one of soup')])
def test_what_means_nothing_is_refused(models, method, base, options, told):
  with pytest.raises(ValueError, match=told):
    merge.merge(models[:2], method, base=models[2] if base else None, options=options)


@pytest.mark.thorough
@pytest.mark.parametrize('starts', after(1, [
    ((.5, 1.),), (((.5, 1.), (.8, .6)),)]))
def test_a_learned_position_is_no_worse_than_a_grid(starts):
  """Two tasks that pull one model apart: quadratic losses around its fine-tunings."""
  rng = np.random.default_rng(2)
  centres, scales = rng.normal(size=(2, 6)), rng.uniform(.5, 2, (2, 6))
  first, second, start = [bundle.Bundle(
      params={'backbone': {'x': jnp.asarray(x, jnp.float32)}}, cfg=CFG, source=str(i))
      for i, x in enumerate((*centres, np.zeros(6)))]

  def loss(params, batch):
    return (batch[1] * (params['backbone']['x'] - batch[0]) ** 2).sum()

  batch = jnp.float32(centres), jnp.float32(scales)
  at = lambda x: float(loss({'backbone': {'x': jnp.float32(x)}}, batch))
  found = [position.learn([first, second], start, ([batch], loss), position.Options(
      steps=300, learning_rate=5e-2, shares=(share,), length=length))
      for share, length in starts]
  gram = slerp.gram(centres)
  grid = [at(length * slerp.coefficients(gram, [t]) @ centres)
          for t in np.linspace(0, 1, 21) for length in np.linspace(0, 2, 41)]
  for each in found:
    assert at(each.model.params['backbone']['x']) <= min(grid)
    assert each.after < each.before
  np.testing.assert_allclose(found[0].weights, found[-1].weights, atol=1e-3)
  same = position.learn([first] * 2, start, ([batch], loss))
  assert (same.model.params['backbone']['x'] == first.params['backbone']['x']).all()
