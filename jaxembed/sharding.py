"""Meshes, sharding rules of the parameters, and host batches as global arrays."""

from collections.abc import Sequence
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec as P,
)
import numpy as np

from jaxembed import types
from jaxembed.config.check import divides
from jaxembed.mesh import AXES, BATCH, SEQUENCE, explicit, spec
from jaxembed.paths import is_stacked, mapped
from jaxembed.pooling import heads

# Projections that are split on their output side, and on their input side.
_OUT = r'layers/(input/gate|(full_)?attn/(pos_)?[qkv]|mlp/(up|gate))'
_IN = r'layers/(input/out|(full_)?attn/o|mlp/down)'

# Where each parameter lies: the first pattern that matches its path decides. Poolings
# bring rows of their own (pooling.head.Head.rules).
# Paths under layers/ carry a leading layer axis, which is never split. A matrix
# [in, out] is split over 'tensor' on the side that attention heads or
# feed-forward channels are on, over 'fsdp' on the other.
RULES = (
    (r'embed/(token|position|type)$', P(None, 'fsdp')),
    (r'embed/project/kernel$', P(None, 'fsdp')),
    (r'embed/project/bias$', P()),
    (_OUT + r'/kernel$', P('fsdp', 'tensor')),
    (_OUT + r'/bias$', P('tensor')),
    (_IN + r'/kernel$', P('tensor', 'fsdp')),
    (_IN + r'/bias$', P()),
    (r'layers/mlp/(up|gate)_kernel$', P(None, 'fsdp', 'tensor')),  # of all experts
    (r'layers/mlp/down_kernel$', P(None, 'tensor', 'fsdp')),
    (r'layers/mlp/router_kernel$', P()),
    (_OUT + r'/lora_a$', P('fsdp', None)),
    (_OUT + r'/lora_b$', P(None, 'tensor')),
    (_IN + r'/lora_a$', P('tensor', None)),
    (_IN + r'/lora_b$', P(None, 'fsdp')),
    (r'backbone/relative$|attn/relative$', P()),
    (r'backbone/(inputs_kernel|inputs_scale|out_kernel)$|layers/scale$', P()),
    (r'backbone/.*norm/(scale|bias)$', P()),
    (r'dense/\d+/(kernel|bias|residual|scale)$', P()),
    (r'length/(up|down)$', P()),
    (r'loss/(log_scale|projection/(kernel|bias)|pair_head/.*)$', P()),
)


def make_mesh(shape: Sequence[int] = (-1, 1, 1),
              devices: Sequence[Any] | None = None) -> Mesh:
  """Mesh with the axes data, fsdp, tensor and, if shape has a fourth size above 1,
  sequence, over all devices.

  One size may be -1 and takes what the others leave. Of several slices (TPU pods,
  or GPU nodes, joined by the slower network) each is a replica: `data` alone
  crosses between them.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or `data` is not
      a multiple of the slices.
  """
  devices = jax.devices() if devices is None else devices
  if -1 in shape:
    rest = -int(np.prod(shape))
    shape = tuple(max(len(devices) // rest, 1) if n == -1 else n for n in shape)
  names = (*AXES, SEQUENCE)[:len(shape)]
  if len(shape) not in (3, 4) or int(np.prod(shape)) != len(devices):
    raise ValueError(
        f'mesh {tuple(shape)} ({", ".join(names)}) needs {int(np.prod(shape))} '
        f'devices, but {len(devices)} are here; choose three sizes, or a fourth for '
        f'{SEQUENCE}, whose product is {len(devices)}')
  slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if shape[0] % slices:
    raise ValueError(
        f'mesh {tuple(shape)} ({", ".join(names)}) over {slices} slices: only data '
        f'crosses between slices, make it a multiple of {slices}')
  if len(shape) == 4 and shape[3] == 1:  # most meshes have none
    shape, names = shape[:3], names[:3]
  return Mesh(_grid(tuple(shape), slices, devices), names,
              axis_types=(AxisType.Explicit,) * len(names))


def mesh_of_several(devices: Sequence[Any] | None = None) -> Mesh | None:
  """`make_mesh` over all devices, or over these; None where there is only one."""
  devices = jax.devices() if devices is None else devices
  return make_mesh(devices=devices) if len(devices) > 1 else None


def _grid(shape: tuple[int, ...], slices: int, devices) -> np.ndarray:
  """Devices in an array of `shape`, neighbours on the network beside each other."""
  within = (shape[0] // slices, *shape[1:])

  def arranged(**options):
    if slices > 1:
      return mesh_utils.create_hybrid_device_mesh(
          within, (slices, *(1 for _ in shape[1:])), devices, **options)
    return mesh_utils.create_device_mesh(shape, devices, **options)

  try:
    return arranged()
  except NotImplementedError:  # an axis that is a part of a torus's side
    return arranged(allow_split_physical_axes=True)


def to_global(mesh: Mesh, host: types.Batch | types.Tokens) -> Any:
  """Global arrays from this host's slice of the rows, split over BATCH.

  Raises:
    ValueError: the global row count does not divide the mesh.
  """
  parts, local = batch_shards(mesh), len(_local_shards(mesh))

  def globally(x):
    total = len(x) * parts // local
    divides(f'batch of {total} rows', total, parts)
    return jax.make_array_from_process_local_data(
        NamedSharding(mesh, P(BATCH, *(None,) * (np.ndim(x) - 1))), x,
        global_shape=(total, *x.shape[1:]))

  return jax.tree.map(globally, host)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
  """Over how many devices of `mesh` the rows of a batch are split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def local_rows(mesh: Mesh, total: int) -> np.ndarray:
  """Which of `total` rows this process supplies, in the order `to_global` takes.

  A mesh may lay the devices of a process far apart, and give several processes the
  same rows (where `tensor` crosses between them).
  """
  each = total // batch_shards(mesh)
  return np.concatenate(
      [np.arange(s * each, (s + 1) * each) for s in _local_shards(mesh)])


def _local_shards(mesh) -> list[int]:
  """The shards of a batch that lie on devices of this process."""
  here = np.vectorize(lambda d: d.process_index == jax.process_index())(mesh.devices)
  return np.flatnonzero(here.reshape(batch_shards(mesh), -1).any(1)).tolist()


def batch_devices() -> int:
  """Over how many devices of the mesh in force rows are split."""
  return batch_shards(jax.sharding.get_abstract_mesh()) if explicit() else 1


def split_devices(x: types.Array) -> jax.Array:
  """[B,...] split over BATCH -> [devices, rows of each, ...]; nothing moves."""
  parts = batch_devices()
  return jax.lax.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:]),
                         out_sharding=spec(BATCH))


def merge_devices(x: types.Array) -> jax.Array:
  """Inverse of `split_devices`."""
  return jax.lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]),
                         out_sharding=spec(BATCH))


def concat_local(a: Any, b: Any) -> Any:
  """Trees of [A,...] and [B,...] as one of [A+B,...]: on every device its rows
  of a, then its rows of b; nothing moves."""
  return jax.tree.map(lambda x, y: merge_devices(jnp.concatenate(
      [split_devices(x), split_devices(y)], axis=1)), a, b)


def split_local(x: types.Array, first: int) -> tuple[jax.Array, jax.Array]:
  """Inverse of `concat_local` for one array: the `first` rows of a, and those of b."""
  parts, cut = split_devices(x), first // batch_devices()
  return merge_devices(parts[:, :cut]), merge_devices(parts[:, cut:])


def local_gather(x: jax.Array, at: types.Array) -> jax.Array:
  """Rows `at` [N] of x [B,...]: on every device, of its own rows."""
  if not explicit():
    return x[at]
  return jax.shard_map(lambda x, at: x[at], in_specs=(P(BATCH), P(BATCH)),
                       out_specs=P(BATCH))(x, at)


def param_specs(params: types.Params) -> types.Params:
  """The tree of `params` with the PartitionSpec of each leaf, by RULES.

  Raises:
    ValueError: a path that no rule matches; nothing is replicated silently.
  """
  return mapped(_rule, params)


def place(params: types.Params, mesh: Mesh) -> types.Params:
  """Parameters on the mesh, by RULES."""
  return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)),
                      params, param_specs(params))


def abstract(params: types.Params, mesh: Mesh) -> types.Params:
  """jax.ShapeDtypeStructs of `params`, laid out on the mesh by RULES."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=NamedSharding(mesh, s)),
      params, param_specs(params))


def _rule(path: str) -> P:
  for pattern, axes in (*RULES, *heads.rules()):
    if re.search(pattern, path):
      return P(None, *axes) if is_stacked(path) else axes
  raise ValueError(f'no sharding rule matches parameter {path!r}; '
                   'add a row to sharding.RULES, or to Head.rules')
