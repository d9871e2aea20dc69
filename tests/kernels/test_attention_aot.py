"""Compiled on this host for chips that are not here: the libraries' kernels stand in
the program, forward and backward, and memory is linear."""

import jax
import jax.numpy as jnp
import pytest

from jaxembed import sharding
from jaxembed.kernels.attention import attend, pattern
from jaxembed.train import plan

pytestmark = pytest.mark.thorough
TPUS = 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'
# Scores of two of the 32 heads, 8,192 tokens, float32.
TWO_HEADS = 2 * 8192**2 * 4


def compiled(chip, length, packed=False, attention='bidirectional'):
  """Value and gradient of attention at the width of the 7B Mistral, for one chip."""
  mesh = sharding.make_mesh((1, 1, 1), chip)

  def shape(dims, dtype, *spec):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=jax.NamedSharding(
        mesh, jax.P(sharding.BATCH, *spec)))

  q, k = (shape((1, length, n, 128), jnp.bfloat16, None, 'tensor', None)
          for n in (32, 8))
  mask = shape((1, length), bool, None)

  def f(q, k, v, mask):
    segment = jnp.cumsum(mask, 1) // 100 if packed else None
    seen = pattern.of_tokens(attention, mask, segment)
    return attend(q, k, v, seen, scale=0.1).astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(f, (0, 1, 2))).lower(q, k, k, mask).compile()


@pytest.mark.parametrize('topology', TPUS)
@pytest.mark.parametrize('packed', [False, True])
def test_a_tpu_runs_splash(topology, packed):
  pytest.importorskip('libtpu', reason='libtpu (the test extra) is not installed')
  found = compiled(plan.devices(topology)[0][:1], 8192, packed)
  for name in ('splash_mha_fwd', 'splash_mha_dq', 'splash_mha_dkv'):
    assert name in found.as_text()
  assert found.memory_analysis().temp_size_in_bytes < TWO_HEADS


@pytest.mark.parametrize('attention', ['causal', 'bidirectional'])
@pytest.mark.parametrize('packed', [False, True])
def test_an_h100_runs_cudnn(shared_fixtures, attention, packed):
  """By lengths, with linear memory; packed rows of up to 2,048 tokens by a mask."""
  pytest.importorskip('jax_cuda13_plugin',
                      reason='the CUDA plugin (the cuda extra) is not installed')
  target = (shared_fixtures / 'h100_target_config.txtpb').read_text()
  chip = plan.devices('h100:1', target)[0]
  found = compiled(chip, 2048, packed, attention)
  call = '__cudnn$fmha' + 'ScaleBias' * packed + 'Softmax'
  for name in (f'"{call}"', f'"{call}Backward"'):
    assert name in found.as_text()
  if not packed:
    small, large = (x.memory_analysis().temp_size_in_bytes for x in (
        found, compiled(chip, 8192, packed, attention)))
    assert large < 4.5 * small and large < TWO_HEADS
