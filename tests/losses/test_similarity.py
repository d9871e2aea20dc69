"""What the losses compare: cosines of whatever a model gives, or its products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxembed import config, losses, types
from jaxembed.models import presets
from jaxembed.train import model_spec


def rows(lengths=(0.01, 300.0), zero=(), queries=12, width=24):
  """Queries and passages (a positive and a hard negative each) of any length."""
  rng = np.random.default_rng(0)
  q, noise = rng.normal(size=(queries, width)), rng.normal(size=(2 * queries, width))
  p = noise + np.repeat(q, 2, 0) * (np.arange(2 * queries) % 2 == 0)[:, None]
  q, p = ((x * rng.uniform(*lengths, (len(x), 1))).astype(np.float32) for x in (q, p))
  q[list(zero)] = p[list(zero)] = 0
  count = np.arange(2 * queries, dtype=np.int32)
  return q, p, types.Pairing(
      owner=count // 2, is_positive=count % 2 == 0,
      query_id=count[:queries] + 1000, passage_id=count, group=count[:queries] * 0,
      in_batch=np.ones(queries, bool))


def value_and_gradients(cfg, q, p, pair):
  return jax.jit(jax.value_and_grad(
      lambda q, p: losses.info_nce(q, p, pair, cfg)[0], (0, 1)))(q, p)


def in_torch(q, p, scale, cosine, widths=()):
  """Cross entropy over all passages, as sentence-transformers computes it."""
  q, p = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (q, p))
  total = 0
  for width in widths or (q.shape[1],):
    a, b = q[:, :width], p[:, :width]
    if cosine:
      a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    total += torch.nn.functional.cross_entropy(
        a @ b.T * scale, 2 * torch.arange(len(q))) / len(widths or (0,))
  total.backward()
  return total.item(), q.grad.numpy(), p.grad.numpy()


@pytest.mark.parametrize('similarity, lengths, scale, widths', [
    ('cosine', (0.01, 300.0), 20.0, ()), ('cosine', (1e-3, 2.0), 20.0, (8, 24)),
    ('dot', (0.2, 1.5), 1.0, ()), ('dot', (0.2, 1.5), 1.0, (24, 8))])
def test_equals_cross_entropy_in_torch(similarity, lengths, scale, widths):
  q, p, pair = rows(lengths)
  cfg = config.LossConfig(similarity=similarity, temperature=1 / scale, widths=widths)
  value, grads = value_and_gradients(cfg, q, p, pair)
  want, *slopes = in_torch(q, p, scale, similarity == 'cosine', widths)
  np.testing.assert_allclose(value, want, rtol=5e-6)
  for got, slope in zip(grads, slopes, strict=True):
    np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-6 * np.abs(slope).max())


def test_lengths_of_any_size_and_rows_of_zeros_are_defined():
  q, p, pair = rows(zero=(3,))
  want, grads = value_and_gradients(config.LossConfig(), q, p, pair)
  assert np.isfinite(want) and all(np.isfinite(g).all() for g in grads)
  assert np.asarray(grads[0])[3].any()  # it is led away from zero
  scale = np.float32([1e25, 1e-12] * 6)[:, None]  # the first: squares beyond float32
  value, _ = value_and_gradients(config.LossConfig(), q * scale, p, pair)
  np.testing.assert_allclose(value, want, rtol=1e-5)


@pytest.mark.thorough
def test_a_product_beyond_the_range_of_the_sums_is_refused_and_seen():
  q, p, pair = rows((0.2, 1.5))
  cfg = config.LossConfig(similarity='dot', temperature=1.0)
  q[5] *= 1e12  # float32 holds the products, the floor of the sums would hide them
  with pytest.raises(ValueError, match=r'query .* beyond all use in 1 rows.*\[5\]'):
    losses.info_nce(q, p, pair, cfg)
  value, metrics = jax.jit(lambda q: losses.info_nce(q, p, pair, cfg))(q)
  assert np.isnan(value) and metrics['loss/nonfinite_rows'] == 1
  q[5] /= 1e5  # logits of 1e7
  value, _ = losses.info_nce(q, p, pair, cfg)
  np.testing.assert_allclose(value, in_torch(q, p, 1, False)[0], rtol=1e-5)


def test_what_a_product_has_no_range_for_is_refused():
  for field in ({'bounded': True}, {'margin': 0.1}, {'relative_margin': 0.95}):
    with pytest.raises(ValueError, match=f'LossConfig.{next(iter(field))} is .* over'):
      config.LossConfig(similarity='dot', **field)


@pytest.mark.parametrize('temperature', [0.01, 0.005, 0.001])
@pytest.mark.parametrize('learn', [False, True])
def test_bounded_is_the_same_loss_at_any_temperature(temperature, learn):
  """Beyond its range running maxima are kept, and the notes of the run say so."""
  q, p, pair = rows()
  out = []
  for bounded in (False, True):
    cfg = config.LossConfig(temperature=temperature, bounded=bounded, max_scale=1e3,
                            learn_temperature=learn, relative_margin=0.2)
    scale = jnp.float32(-np.log(temperature)) if learn else None
    out.append(losses.info_nce(q, p, pair, cfg, scale)[0])
  np.testing.assert_allclose(out[1], out[0], rtol=1e-5)
  told = [note for note in cfg.notes() if 'running maxima' in note]
  assert len(told) == (learn or temperature < 0.01)


def test_a_relative_margin_never_keeps_what_is_above_the_positive():
  q, p, pair = rows()
  p[::2] -= 3 * np.float32(np.linalg.norm(p[::2], axis=-1, keepdims=True) * q
                           / np.linalg.norm(q, axis=-1, keepdims=True))
  cosine = (q / np.linalg.norm(q, axis=-1, keepdims=True)) @ (
      p / np.linalg.norm(p, axis=-1, keepdims=True)).T
  positive = np.diag(cosine[:, ::2])
  assert (positive < 0).all()
  _, metrics = losses.info_nce(q, p, pair, config.LossConfig(relative_margin=0.95))
  below = cosine < (positive - 0.05 * np.abs(positive))[:, None]
  np.testing.assert_allclose(metrics['loss/kept_negatives'], below.sum(1).mean())


def test_a_model_trained_by_cosine_gives_vectors_of_length_1_unless_told_otherwise():
  source = config.ModelConfig(backbone=presets.tiny('bert'), normalize=False)
  for asked, gets, told in ((None, True, 'length 1, as losses compare by cosine'),
                            (True, True, 'length 1'), (False, False, '')):
    spec = config.ModelSpec(source='a', normalize=asked)
    assert model_spec.apply(source, spec).normalize == gets
    assert told in ' '.join(model_spec.changes(source, spec))
  assert not model_spec.changes(source, spec)
  stage = config.StageConfig(loss=config.LossConfig(similarity='dot'))
  with pytest.raises(ValueError, match='config.model.normalize does not say'):
    config.Config(stages=[stage])
  config.Config(stages=[stage], model=config.ModelSpec(source='a', normalize=False))
