"""Memory told before it is met."""

import threading
import warnings

import jax
import numpy as np
import pytest

from jaxembed import batch_runner, memory, sharding, side_by_side
from jaxembed.config import ModelConfig
from jaxembed.embedder import Embedder
from jaxembed.models import encoder, presets
from jaxembed.types import Tokens

SHAPES = {
    'bert': dict(dim=384, ff_dim=1536, num_heads=12, num_kv_heads=12, head_dim=32),
    'qwen3': dict(dim=512, ff_dim=1536, num_heads=8, num_kv_heads=4, head_dim=128),
    'modernbert': dict(dim=384, ff_dim=576, num_heads=6, num_kv_heads=6, head_dim=64),
}


def shape(family, **fields):
  cfg = ModelConfig(max_length=2048, backbone=presets.tiny(
      family, max_positions=2048, **SHAPES[family]), **fields)
  return cfg, encoder.param_shapes(cfg, cfg.dtype)


@pytest.mark.parametrize('family, dtype, rows, length', [
    ('bert', 'float32', 4, 1024),
    *(pytest.param(*case, marks=pytest.mark.thorough) for case in (
        ('bert', 'float32', 32, 128), ('qwen3', 'float32', 4, 1024),
        ('qwen3', 'float32', 1, 128),
        ('qwen3', 'bfloat16', 2, 2048),
        ('qwen3', 'bfloat16', 1, 256), ('bert', 'bfloat16', 4, 1024),
        ('modernbert', 'float32', 4, 1024)))])
def test_the_forecast_is_the_compilers_figure(family, dtype, rows, length):
  """Never less, and at most three times as much: the compiler may find better."""
  cfg, shapes = shape(family, dtype=dtype)
  place = jax.ShapeDtypeStruct((rows, length), bool)
  tokens = Tokens(jax.ShapeDtypeStruct((rows, length), 'int32'), place, place)
  found = jax.jit(encoder.encode, static_argnums=1).lower(
      shapes, cfg, tokens).compile().memory_analysis().temp_size_in_bytes
  told = memory.forecast(cfg, shapes, available=2**34)
  upper = told.fixed + told.token * rows * length
  assert found <= upper <= 3 * found + told.fixed, (found, upper)


def test_what_fits_is_told_and_what_does_not_is_warned_of():
  cfg, shapes = shape('bert')
  enough = memory.forecast(cfg, shapes, available=2**33)
  enough.check()
  assert f'{enough.rows(2048)} texts of 2048' in str(enough)
  assert 0.7 * 2**33 < enough.weights + enough.fixed + (
      enough.tokens * enough.token) <= 0.8 * 2**33
  little = memory.forecast(cfg, shapes, available=enough.weights + enough.fixed + 2**24)
  with pytest.warns(UserWarning, match='max_length 2048 .*max_seq_length'):
    little.check()
  four = memory.forecast(cfg, shapes, available=2**33, mesh=sharding.make_mesh(
      (1, 2, 1, 2), jax.devices()[:4]))
  assert four.tokens == 4 * enough.tokens
  unknown = memory.Forecast(1, 1, 1, None, 1)
  unknown.check()
  assert 'unknown' in str(unknown) and unknown.rows(8) is None


def test_steps_keep_within_the_memory(embedder, monkeypatch):
  """Little memory means smaller steps and the same vectors."""
  texts = [f'text {i} of several words that are not many' for i in range(40)]
  wanted, before = embedder.encode(texts), embedder.report.shapes
  told = embedder.memory
  room = told.weights + told.fixed + 128 * told.token
  monkeypatch.setattr(memory, 'device_bytes', lambda device: int(room / 0.8) + 1)
  other = Embedder(embedder.bundle)
  np.testing.assert_allclose(other.encode(texts, batch_size=512), wanted, atol=1e-6)
  assert max(r * t for r, t in other.report.shapes) <= 128 < max(
      r * t for r, t in before)


def test_batches_side_by_side_are_those_of_one_after_another(embedder, monkeypatch):
  """On as many cores as there are batches and memory for; errors keep their remedy."""
  texts = [f'text {i} of several words that are not many' for i in range(40)]
  used, program = [], batch_runner._encode

  def watched(*args, one_core=False, **kwargs):
    used.append((one_core, threading.current_thread() is threading.main_thread()))
    return program(*args, one_core=one_core, **kwargs)

  monkeypatch.setattr(batch_runner, '_encode', watched)
  found = []
  for cores in (1, 2, 20):
    monkeypatch.setattr(side_by_side, 'cores', lambda cores=cores: cores)
    found.append(Embedder(embedder.bundle).encode(texts, batch_size=1))
    assert set(used) == {(cores == 2, cores != 2)} and len(used) >= 4
    used.clear()
  np.testing.assert_allclose(found[1], found[0], atol=1e-6)
  np.testing.assert_array_equal(found[2], found[0])
  monkeypatch.setattr(side_by_side, 'cores', lambda: 2)
  told = embedder.memory
  room = told.weights + told.fixed + 100 * told.token
  monkeypatch.setattr(memory, 'device_bytes', lambda device: int(room / 0.8) + 1)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    Embedder(embedder.bundle).encode(texts, batch_size=1)
  assert set(used) == {(False, True)}  # memory for one batch, not for two


def test_an_error_of_the_device_becomes_a_remedy(embedder, monkeypatch):
  def full(*args, **kwargs):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating')

  monkeypatch.setattr('jaxembed.batch_runner._encode', full)
  with pytest.raises(MemoryError, match='1 texts of .*batch_size below 1.*bfloat16'):
    Embedder(embedder.bundle).encode('a text')  # no taller shape made before
  with pytest.raises(jax.errors.JaxRuntimeError), memory.explained(''):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


def test_models_that_fit_are_loaded_without_a_word(embedder):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    Embedder(embedder.bundle)
  assert embedder.memory.tokens > 512
