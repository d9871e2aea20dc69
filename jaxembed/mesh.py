"""Shardings under a mesh of Explicit axes; where there is none, these do nothing.

Mesh axes are Explicit: the sharding of every array is part of its type, and an
operation whose result could be sharded in two ways is an error until the code
says which (`out_sharding=spec(...)`). `spec` answers None without a mesh (one
device, or inside shard_map), so model code is the same everywhere.
"""

from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

from jaxembed.types import Array

_X = TypeVar('_X', bound=Array)

AXES = ('data', 'fsdp', 'tensor')
# Rows of text are split over both: fsdp is data parallelism whose parameters
# are split as well.
BATCH = ('data', 'fsdp')
# Tokens of a row are split over it, in a mesh that has it: for texts that are too long
# for one device.
SEQUENCE = 'sequence'


def explicit() -> bool:
  """Whether the mesh in force has Explicit axes."""
  return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def batch_axes() -> tuple[str, ...]:
  """The mesh axes that rows of text are split over; () without a mesh."""
  return BATCH if explicit() else ()


def spec(*axes) -> P | None:
  """PartitionSpec of `axes` under an Explicit mesh, None without one.

  spec(BATCH, None, 'tensor') shards a [B,T,F] activation.
  """
  return P(*axes) if explicit() else None


def tokens_axis() -> str | None:
  """The mesh axis that splits the tokens of a row; None: they are whole."""
  mesh = jax.sharding.get_abstract_mesh()
  return SEQUENCE if explicit() and mesh.shape.get(SEQUENCE, 1) > 1 else None


def sequence_devices() -> int:
  """Over how many devices of the mesh in force the tokens of a row are split."""
  axis = tokens_axis()
  return jax.sharding.get_abstract_mesh().shape[axis] if axis else 1


def split_tokens(x: jax.Array, like: jax.Array | None = None) -> jax.Array:
  """x [B,T,...] with its tokens where those of a [B,T,...] activation (`like`) are."""
  axes = (BATCH, tokens_axis()) if like is None else axes_of(like)[:2]
  return reshard(x, *axes, *(None,) * (x.ndim - 2))


def axes_of(x: Array) -> tuple:
  """The mesh axes that split each dimension of x; all None without a mesh."""
  return tuple(jax.typeof(x).sharding.spec) if explicit() else (None,) * x.ndim


def reshard(x: _X, *axes) -> _X:
  """`x` moved to the sharding of `axes`: an all-gather where an axis goes away."""
  return jax.sharding.reshard(x, P(*axes)) if explicit() else x


def replicate(x: _X) -> _X:
  """`x` whole on every device."""
  return reshard(x)


def along_last(v: Array, x: Array) -> jax.Array:
  """v [F] broadcast to the shape and sharding of x [...,F]."""
  return lax.broadcast_in_dim(jnp.asarray(v), x.shape, (x.ndim - 1,),
                              out_sharding=spec(*axes_of(x)))


def for_each_row(v: Array, rows: int) -> jax.Array:
  """v [R,D] once for every row of a batch.  -> [B,R,D], rows split over BATCH."""
  return lax.broadcast_in_dim(v, (rows, *v.shape), tuple(range(1, v.ndim + 1)),
                              out_sharding=spec(BATCH, *(None,) * v.ndim))
