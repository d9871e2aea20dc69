"""The mesh and the way of rows onto it."""

import jax
from jax.experimental import topologies
import numpy as np
import pytest

from jaxembed import sharding


def test_only_data_crosses_between_slices():
  pytest.importorskip('libtpu', reason='libtpu (the test extra) is not installed')
  chips = topologies.get_topology_desc(
      platform='tpu', topology_name='v5e:2x2', num_slices=2).devices
  mesh = sharding.make_mesh((2, -1, 2), chips)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  for i in range(2):
    assert {d.slice_index for d in mesh.devices[i].ravel()} == {i}
  with pytest.raises(ValueError, match='over 2 slices: .* a multiple of 2'):
    sharding.make_mesh((1, 8, 1), chips)


@pytest.mark.parametrize('topology', ['v5e:16x16', 'v5p:4x4x4', 'v6e:8x8'])
def test_an_axis_may_be_a_part_of_a_torus(topology):
  pytest.importorskip('libtpu', reason='libtpu (the test extra) is not installed')
  chips = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  mesh = sharding.make_mesh((1, -1, 2), chips)
  assert len({d.id for d in mesh.devices.ravel()}) == len(chips)
  for pair in mesh.devices.reshape(-1, 2):  # tensor's two are neighbours
    apart = np.abs(np.subtract(pair[0].coords, pair[1].coords))
    assert apart.sum() == 1 or list(pair[0].coords) == list(pair[1].coords)


def test_sizes_that_do_not_multiply_are_refused():
  with pytest.raises(ValueError, match='needs 6 devices, but 8 are here'):
    sharding.make_mesh((3, 2, 1))


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2), (8, 1, 1)])
def test_beside_and_apart_are_inverse(shape):
  count = int(np.prod(shape))
  mesh = sharding.make_mesh(shape, jax.devices()[:count])
  a, b = np.arange(16.0)[:, None], np.arange(100.0, 148.0)[:, None]
  rows = jax.NamedSharding(mesh, jax.P(sharding.BATCH, None))
  with jax.set_mesh(mesh):
    both = jax.jit(sharding.concat_local)(*jax.device_put((a, b), rows))
    assert sorted(np.ravel(both)) == sorted([*np.ravel(a), *np.ravel(b)])
    back = jax.jit(sharding.split_local, static_argnums=1)(both, 16)
    text = jax.jit(sharding.concat_local).lower(
        *jax.device_put((a, b), rows)).compile().as_text()
  np.testing.assert_array_equal(back[0], a)
  np.testing.assert_array_equal(back[1], b)
  assert 'all-' not in text and 'permute' not in text  # nothing moves


@pytest.mark.parametrize('topology,shape', [
    ('v5p:4x4x4', (1, -1, 1)), ('v5p:4x4x4', (2, -1, 2)), ('v5e:4x4', (16, 1, 1))])
def test_a_process_supplies_the_rows_of_its_devices(monkeypatch, topology, shape):
  pytest.importorskip('libtpu', reason='libtpu (the test extra) is not installed')
  chips = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  mesh = sharding.make_mesh(shape, chips)
  total = 2 * sharding.batch_shards(mesh)
  lies = jax.NamedSharding(mesh, jax.P(sharding.BATCH)).devices_indices_map((total,))
  seen, apart = [], False
  for process in {d.process_index for d in chips}:
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    want = {i for device, (rows,) in lies.items() if device.process_index == process
            for i in range(*rows.indices(total))}
    got = sharding.local_rows(mesh, total)
    assert got.tolist() == sorted(want)
    apart |= (np.diff(got) > 1).any()
    seen += got.tolist()
  assert set(seen) == set(range(total))
  assert apart  # or the test has no case where rows of a process are no neighbours
