"""Compiled on this host for chips that are not here: it fits, memory is linear."""

import dataclasses
import re

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed import config, sharding
from jaxembed.kernels.contrastive import MaskVectors, masked_lse
from jaxembed.models import presets
from tests.helpers import tiny_step

MIB = 1 << 20
CHIPS = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}


def mesh(topology, shape=(1, 1, 1)):
  """A mesh of chips that are described, not present."""
  pytest.importorskip('libtpu', reason='libtpu (the test extra) is not installed')
  described = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  return sharding.make_mesh(shape, described.devices[:int(np.prod(shape))])


def h100(target):
  """A mesh of one H100 described by a target file."""
  pytest.importorskip('jax_cuda13_plugin',
                      reason='the CUDA plugin (the cuda extra) is not installed')
  described = topologies.get_topology_desc(
      platform='cuda', topology_name='h100', topology='1x1x1',
      target_config=(target / 'h100_target_config.txtpb').read_text())
  return sharding.make_mesh((1, 1, 1), described.devices)


def lowered(where, b, n, d, *, impl, dtype='bfloat16', inputs=jnp.bfloat16,
             directions=('row', 'col'), masks=True, **options):
  """Value and gradient of a loss over masked_lse, lowered for `where`."""
  def loss(q, k, scale, ids, key, limit, bias):
    row = MaskVectors(ids=(ids,), threshold=limit) if masks else MaskVectors()
    col = MaskVectors(ids=(key,), bias=bias) if masks else MaskVectors()
    sums = masked_lse(q, k, scale=scale, row=row, col=col, directions=directions,
                      impl=impl, dtype=dtype, axes=sharding.BATCH, **options)
    return sum(jax.nn.softplus(s.lse).mean() for s in sums if s is not None)

  def shape(dims, kind):
    spec = jax.P(sharding.BATCH, *(None,) * (len(dims) - 1)) if dims else jax.P()
    return jax.ShapeDtypeStruct(dims, kind, sharding=jax.NamedSharding(where, spec))

  scales = shape((b,) if directions == ('row',) else (), jnp.float32)
  args = (shape((b, d), inputs), shape((n, d), inputs), scales,
          shape((b,), jnp.int32), shape((n,), jnp.int32), shape((b,), jnp.float32),
          shape((n,), jnp.float32))
  with jax.set_mesh(where):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*args)


def compiled(*args, **kwargs):
  return lowered(*args, **kwargs).compile()


def temporaries(*args, **kwargs):
  return compiled(*args, **kwargs).memory_analysis().temp_size_in_bytes


@pytest.mark.thorough
@pytest.mark.parametrize('d', [768, 1024, 4096])
@pytest.mark.parametrize('chip', CHIPS)
def test_tpu_kernels_compile(chip, d):
  text = compiled(mesh(CHIPS[chip]), 2048, 4096, d, impl='tpu').as_text()
  assert 'contrastive_sums' in text and 'contrastive_gradients' in text


@pytest.mark.thorough
@pytest.mark.parametrize('bounded, masks, directions', [
    (False, False, ('row', 'col')), (True, True, ('row', 'col')),
    (True, True, ('row',)), (False, True, ('row',))])
def test_gpu_kernels_lower(bounded, masks, directions):
  where = jax.sharding.AbstractMesh(
      (1,), ('data',), axis_types=(jax.sharding.AxisType.Explicit,),
      abstract_device=jax.sharding.AbstractDevice(
          device_kind='NVIDIA H100 80GB HBM3', num_cores=132, platform='cuda'))
  x = jax.ShapeDtypeStruct((1024, 768), jnp.bfloat16)

  def loss(q, k):
    side = MaskVectors(ids=(jnp.arange(1024, dtype=jnp.int32),),
                threshold=jnp.ones(1024)) if masks else MaskVectors()
    sums = masked_lse(q, k, impl='gpu', directions=directions,
                      row=side, col=side, bounded=bounded,
                      scale=20.0 if len(directions) == 2 else jnp.full(1024, 20.0))
    return sum(x.lse.sum() for x in sums if x is not None)

  with jax.sharding.use_abstract_mesh(where):
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, x)
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert text.count('@mosaic_gpu_v2') == 2  # sums and ds


@pytest.mark.thorough
@pytest.mark.parametrize('d', [768, 1024, 4096])
def test_gpu_kernels_compile(d, shared_fixtures):
  compiled(h100(shared_fixtures), 4096, 8192, d, impl='gpu')


@pytest.mark.thorough
@pytest.mark.parametrize('b, n, d, dtype', [
    (7, 1000, 96, 'bfloat16'), (1000, 130, 1000, 'float32'), (127, 7, 64, 'float32')])
def test_ragged_shapes_compile(b, n, d, dtype):
  compiled(mesh(CHIPS['v5e']), b, n, d, impl='tpu', dtype=dtype,
           inputs=jnp.dtype(dtype), bounded=True)


def test_memory_is_linear_on_cpu():
  where = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  used = [temporaries(where, n, n, 1024, impl='blockwise', dtype='float32',
                      inputs=jnp.float32) for n in (1 << 15, 1 << 16, 1 << 17)]
  assert used[1] <= 2.3 * used[0] and used[2] <= 2.3 * used[1]
  # One [N,D] float32 accumulator at 128k is 512 MiB; a score matrix is 64 GiB.
  assert used[2] <= 600 * MIB


@pytest.mark.thorough
@pytest.mark.parametrize('impl', ['tpu', 'blockwise'])
@pytest.mark.parametrize('chip', CHIPS)
def test_memory_is_linear_on_tpu(chip, impl):
  where = mesh(CHIPS[chip])
  used = [temporaries(where, n, n, 1024, impl=impl, masks=False)
          for n in (1 << 15, 1 << 16, 1 << 17)]
  # From 32k to 64k arrays of 64 MiB stop fitting into v6e's VMEM, and count from then
  # on: linear is what becomes of four times the rows.
  assert used[2] <= 4.6 * used[0] and used[2] <= 2.3 * used[1]


@pytest.mark.thorough
@pytest.mark.parametrize('impl', ['tpu', 'blockwise'])
def test_a_quarter_of_a_million_pairs_fit_a_v5e(impl):
  # dq alone would be 1 GiB in float32, beside 2 GiB of operands and gradients.
  n = 1 << 18
  assert temporaries(mesh(CHIPS['v5e']), n, n, 1024, impl=impl) <= 300 * MIB


@pytest.mark.thorough
def test_ring_hides_its_hops_behind_the_kernel():
  """16 chips: a block's permute starts before a kernel and ends after it."""
  rows = 4096
  text = compiled(mesh('v5e:4x4', (16, 1, 1)), 16 * rows, 16 * rows, 1024, impl='tpu',
                  mode='ring', masks=False, directions=('row',)).as_text()
  bodies = re.split(r'\n(?=[%\w].*\{\n)', text)
  for kernel in ('contrastive_sums', 'contrastive_gradients'):
    body = next(b for b in bodies if re.search(rf'%{kernel}[.\d]* = ', b))
    at = re.search(rf'%{kernel}[.\d]* = ', body).start()
    starts = [m.start() for m in re.finditer(r'= .*collective-permute-start\(', body)]
    dones = [m.start() for m in re.finditer(r'= .*collective-permute-done\(', body)]
    assert starts and len(starts) == len(dones)
    assert max(starts) < at < min(dones), kernel
  # A device sees 4096 rows and 4096 columns at a time, never all 65536.
  wide = [m for m in re.findall(r'\[([\d,]+)\]', text)
          if np.prod([int(x) for x in m.split(',')]) >= rows * 16 * rows]
  assert not wide


@pytest.mark.thorough
@pytest.mark.parametrize('chip', CHIPS)
def test_auto_takes_the_kernels_inside_a_training_step(chip):
  """Both stand in the program of the update, for each chip of the table."""
  where = mesh(CHIPS[chip], (2, 2, 1) if chip != 'v5p' else (2, 1, 1))
  model = config.ModelConfig(dtype='bfloat16', backbone=dataclasses.replace(
      presets.tiny('mistral'), dim=128, ff_dim=256, head_dim=32, vocab_size=512))
  assert {'contrastive_sums', 'contrastive_gradients'} <= tiny_step.tpu_kernels(
      where, model)
