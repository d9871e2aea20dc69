"""The mesh, the parameter table, and the way of a host batch onto devices.

Mesh axes are Explicit: the sharding of every array is part of its type, and an
operation whose result could be sharded in two ways is an error until the code
says which (`out_sharding=spec(...)`). `spec` answers None when there is no mesh
(one device, or inside shard_map), so model code is the same everywhere.
"""

import re

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np

from jaxembed import types

AXES = ('data', 'fsdp', 'tensor')
# Rows of text are split over both: fsdp is data parallelism whose parameters
# are split as well.
BATCH = ('data', 'fsdp')


def make_mesh(shape: tuple[int, int, int] | None = None, devices=None):
  """Mesh with the axes data, fsdp, tensor; default: all devices on data."""
  devices = jax.devices() if devices is None else devices
  shape = tuple(shape) if shape else (len(devices), 1, 1)
  if len(shape) != 3 or int(np.prod(shape)) != len(devices):
    raise ValueError(
        f'mesh {shape} (data, fsdp, tensor) needs {int(np.prod(shape))} devices, '
        f'but {len(devices)} are here; choose three sizes whose product is '
        f'{len(devices)}')
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * 3,
                       devices=devices)


def spec(*axes) -> P | None:
  """PartitionSpec of `axes` under an Explicit mesh, None without one.

  spec(BATCH, None, 'tensor') shards a [B,T,F] activation.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not any(t == AxisType.Explicit for t in mesh.axis_types):
    return None
  return P(*axes)


def rows(mesh, host: types.PairBatch | types.Tokens):
  """Global arrays from this host's slice of the rows, split over BATCH.

  Raises:
    ValueError: the global row count does not divide the mesh.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']

  def place(x):
    total = len(x) * jax.process_count()
    if total % parts:
      raise ValueError(
          f'batch of {total} rows is not a multiple of {parts} devices (data x '
          f'fsdp); use {total // parts * parts or parts} or '
          f'{(total // parts + 1) * parts}')
    return jax.make_array_from_process_local_data(
        NamedSharding(mesh, P(BATCH, *(None,) * (np.ndim(x) - 1))), x)

  return jax.tree.map(place, host)
