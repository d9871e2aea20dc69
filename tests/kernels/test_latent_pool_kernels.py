"""The latent-attention head's device kernels, in interpret mode beside blockwise."""

import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed.kernels.latent_pool import (
  api,
  blockwise,
  fold_latents,
  gpu,
  recompute,
  reference,
  tpu,
)
from tests.helpers.latent_heads import (
  LANES,
  distance,
  make_params,
  make_states,
  value_and_grads,
)
from tests.helpers.tiers import after, thorough

# A kernel in interpret mode, against blockwise: same rounding points, so float32
# differs by the order of sums alone. 600 tokens are two chunks, 1100 three.
CASES = [('tpu', 5, 22, 1, 'float32'), ('tpu', 2, 600, 1, 'float32'),
         ('tpu', 2, 600, 3, 'float32'), thorough('tpu', 5, 40, 3, 'float32'),
         thorough('tpu', 9, 80, 1, 'float32'),
         thorough('gpu', 3, 40, 3, 'bfloat16'),
         thorough('gpu', 1, 300, 1, 'bfloat16')]


def interpreted(device):
  """The device's `geglu_sums`, run on this one."""
  if device == 'tpu':
    return functools.partial(tpu.geglu_sums, True)
  # The interpreter has no public name in this release of JAX.
  params = pytest.importorskip('jax._src.pallas.mosaic_gpu.interpret.params')
  return functools.partial(
      recompute.geglu_sums, gpu.kernel(params.InterpretGPUParams()))


def pooled_by(geglu_sums, marks, segments):
  def op(params, hidden):
    folded = fold_latents(params, hidden.dtype)
    return api.folded_pool(folded, hidden, marks, segments, geglu_sums, 128)
  return op


@pytest.mark.parametrize('device,rows,length,segments,dtype', CASES)
def test_kernel_is_blockwise(device, rows, length, segments, dtype):
  params = make_params(LANES)
  hidden, marks, cotangent = make_states(rows, length, 128, segments)
  hidden = hidden.astype(dtype)
  want, got = (value_and_grads(pooled_by(sums, marks, segments), params, hidden,
                               cotangent)
               for sums in (blockwise.geglu_sums, interpreted(device)))
  # bfloat16: both round pre-activations and their gradients, but sums in another
  # order round the other way now and then: within one unit, 2**-8.
  assert distance(got, want) < (2e-6 if dtype == 'float32' else 2**-8)


@pytest.mark.parametrize('rows,length,segments', after(1, [
    (5, 40, 3), (9, 80, 1), (2, 1100, 4)]))
def test_kernel_for_bfloat16_is_as_close_to_float64_as_blockwise(
    rows, length, segments):
  """The two do not round alike on a CPU, which keeps what is not stored in float32."""
  params = make_params(LANES)
  hidden, marks, cotangent = make_states(rows, length, 128, segments)
  hidden = hidden.astype(jnp.bfloat16)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (params, hidden))
    want = value_and_grads(lambda p, h: reference.latent_pool_packed(
        p, h, marks, segments), *wide, cotangent)
  theirs, ours = (distance(value_and_grads(
      pooled_by(sums, marks, segments), params, hidden, cotangent), want)
      for sums in (blockwise.geglu_sums, interpreted('tpu')))
  assert ours < 1.1 * theirs < 0.02


@pytest.mark.thorough
@pytest.mark.parametrize('cores', [1, 2])
@pytest.mark.parametrize('rows,length,segments', [(9, 80, 1), (2, 1100, 4)])
def test_kernel_does_not_race(rows, length, segments, cores, monkeypatch):
  """Columns of F are shared by the cores; sums stay while a row's chunks pass."""
  interpreter = pytest.importorskip(
      'jax._src.pallas.mosaic.interpret.interpret_pallas_call',
      reason='its findings have no public name in this release of JAX')
  monkeypatch.setattr(tpu, '_COLUMNS', (128,))
  params = make_params(LANES)
  hidden, marks, cotangent = make_states(rows, length, 128, segments)
  run = functools.partial(tpu.geglu_sums, pltpu.InterpretParams(
      detect_races=True, num_cores_or_threads=cores))
  want, got = (value_and_grads(pooled_by(sums, marks, segments), params, hidden,
                               cotangent) for sums in (blockwise.geglu_sums, run))
  assert distance(got, want) < 2e-6
  assert not interpreter.races.races_found


@pytest.mark.thorough
@pytest.mark.parametrize('device, dtype', [('tpu', 'float32'), ('gpu', 'bfloat16')])
def test_a_nan_in_a_text_reaches_no_other_text_of_its_group(device, dtype):
  """Several texts share a step of the kernel: six of 80 tokens, or three of 40."""
  hidden, _, _ = make_states(9, 80 if device == 'tpu' else 40, 128)
  hidden = hidden.at[4, 7, 3].set(jnp.nan).astype(dtype)
  marks = jnp.zeros(hidden.shape[:2], jnp.int32)
  out = np.asarray(pooled_by(interpreted(device), marks, 1)(
      make_params(LANES), hidden))
  assert np.isfinite(np.delete(out, 4, 0)).all() and np.isnan(out[4]).any()
