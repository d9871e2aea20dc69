"""Memory that encoding needs, told before it is met: texts of which length, how many.

A forecast from shapes alone. It is an upper estimate of what a compiled forward pass
takes for its temporaries; weights are counted as they are.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import os
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxembed import types
from jaxembed.config import ModelConfig
from jaxembed.kernels import dispatch
from jaxembed.kernels.attention import SHORT, blockwise, cpu, distant
from jaxembed.mesh import BATCH, SEQUENCE

_GIB = 2**30
# Of the memory that is there, the share that a forward pass may count on: the
# allocator loses some, the runtime keeps some, other programs want some.
_USABLE = 0.8


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What a forward pass needs on each of the devices that share it.

  str() of it says so in a line.
  """

  weights: int  # bytes
  token: int  # bytes of temporaries per token of a step
  fixed: int  # bytes that a step of any size needs
  available: int | None  # bytes that the device has for both; None: unknown
  max_length: int
  shards: int = 1  # devices that rows and tokens are split over

  @property
  def tokens(self) -> int | None:
    """The most tokens of one step, over all devices; None: unknown."""
    if self.available is None:
      return None
    free = _USABLE * self.available - self.weights - self.fixed
    return max(int(free // self.token), 0) * self.shards

  def rows(self, length: int) -> int | None:
    """How many texts of `length` tokens fit into one step; None: unknown."""
    return None if self.tokens is None else self.tokens // length

  def __str__(self) -> str:
    if self.tokens is None or self.available is None:
      return 'the memory of the device is unknown'
    return (f'{self.available / _GIB:.1f} GiB on each device, weights '
            f'{self.weights / _GIB:.2f}; a step of {self.tokens} tokens fits: '
            f'{self.rows(self.max_length)} texts of {self.max_length}')

  def check(self) -> None:
    """Warns if not one text of max_length tokens fits."""
    if (self.tokens is not None and self.available is not None
        and self.tokens < self.max_length):
      need = self.weights + self.fixed + self.token * self.max_length // self.shards
      warnings.warn(
          f'a text of max_length {self.max_length} tokens needs about '
          f'{need / _GIB:.1f} GiB and the device has {self.available / _GIB:.1f}: '
          f'at most {self.tokens} tokens fit; set max_seq_length to that, load with '
          "dtype='bfloat16', or split texts over devices (a mesh with the axis "
          'sequence)', stacklevel=3)


def forecast(cfg: ModelConfig, params: types.Params, *,
             mesh: jax.sharding.Mesh | None = None, available: int | None = None
             ) -> Forecast:
  """Of encoding with `cfg`; params may be jax.ShapeDtypeStructs.

  available: bytes of each device; None: those of the device where `params` are.
  """
  shards = 1 if mesh is None else int(np.prod(
      [mesh.shape.get(axis, 1) for axis in (*BATCH, SEQUENCE)]))
  device = device_of(params, mesh)
  if available is None and device is not None:
    available = device_bytes(device)
  platform = device.platform if device is not None else dispatch.platform()
  fixed = _fixed_bytes(cfg, platform)
  if platform == 'cpu':
    layers = bytes_here(params['backbone'].get('layers'))
    if jnp.dtype(cfg.dtype).itemsize < 4:
      # XLA computes products of 16 bits in float32, and holds what goes into them as
      # such: the weights of all layers, before the first of them runs, and states.
      layers, cfg = 2 * layers, dataclasses.replace(cfg, dtype='float32')
      fixed += layers
    # Those of the layer that runs, alone; a static table has none.
    fixed += layers // max(cfg.backbone.num_layers, 1)
  return Forecast(
      weights=bytes_here(params), token=_token_bytes(cfg, mesh), fixed=fixed,
      available=available, max_length=cfg.max_length, shards=shards)


def device_bytes(device: Any) -> int | None:
  """Memory of a device: what its allocator may hand out; of a CPU, what the machine
  has left and the process has already. None where nothing says."""
  if device.platform != 'cpu':
    try:
      return (device.memory_stats() or {}).get('bytes_limit')
    except (NotImplementedError, jax.errors.JaxRuntimeError):
      return None
  try:
    with open('/proc/meminfo') as f:
      found = dict(line.split(':') for line in f)
    with open('/proc/self/statm') as f:
      resident = int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return int(found['MemAvailable'].split()[0]) * 1024 + resident
  except (OSError, KeyError, ValueError):
    return None


@contextlib.contextmanager
def explained(remedy: str) -> Iterator[None]:
  """Turns a device's out-of-memory error into a MemoryError that ends with `remedy`."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e) and 'out of memory' not in str(e).lower():
      raise
    raise MemoryError(f'the device ran out of memory: {remedy}') from e


def bytes_here(tree: Any) -> int:
  """Bytes of arrays, or of their shapes, on one of their devices."""
  def size(x) -> int:
    shape = x.sharding.shard_shape(x.shape) if getattr(x, 'sharding', None) else x.shape
    return math.prod(shape) * jnp.dtype(x.dtype).itemsize

  return sum(map(size, jax.tree.leaves(tree)))


def device_of(params: types.Params, mesh: jax.sharding.Mesh | None = None) -> Any:
  """The device where parameters live, the first of a mesh's; None: nowhere yet."""
  if mesh is not None:
    return mesh.devices.flat[0] if isinstance(mesh, jax.sharding.Mesh) else None
  return next((next(iter(x.devices())) for x in jax.tree.leaves(params)
               if isinstance(x, jax.Array)), None)


def _token_bytes(cfg: ModelConfig, mesh) -> int:
  """Bytes that are alive at the widest place of a layer, per token of a device."""
  b, item = cfg.backbone, jnp.dtype(cfg.dtype).itemsize
  split = mesh.shape.get('tensor', 1) if mesh is not None else 1
  queries = b.num_heads * b.head_dim // split
  keys = 2 * b.num_kv_heads * b.head_dim // split
  # Queries, keys, values and the output, each once more with heads before tokens.
  attention = 2 * item * (2 * queries + keys) + 4 * queries
  if cfg.attention_impl in ('auto', 'dense'):  # scores and weights of short rows
    all_at_once = cfg.attention_impl == 'dense' or b.disentangled
    length = cfg.max_length if all_at_once else min(SHORT, cfg.max_length)
    attention = max(attention, 2 * 4 * length * b.num_heads // split
                    + item * (2 * queries + keys))
  if _distant(cfg):  # queries thrice, keys thrice, and their float32 products
    attention += item * (4 * queries + 2 * keys)
  width = b.ff_dim * (b.experts_used if b.experts else 1)
  feed_forward = item * (3 if b.gated else 2) * width // split
  return (3 * item + 4) * b.dim + max(attention, feed_forward)


def _fixed_bytes(cfg: ModelConfig, platform: str) -> int:
  """Tiles of scores: themselves, their weights, and what is compared for masks.

  Library kernels keep theirs out of the device's memory.
  """
  if _distant(cfg):
    return 6 * 4 * (distant.CPU_SCORES if platform == 'cpu' else distant.DEVICE_SCORES)
  if platform == 'cpu':
    wide = cpu.QUERIES * min(cfg.max_length, cpu.ALL_KEYS)
    return 4 * max(4 * blockwise.CPU_SCORES, 2 * wide)
  tiled = cfg.attention_impl == 'blockwise' or cfg.backbone.relative_buckets
  return 4 * 4 * blockwise.DEVICE_SCORES if tiled else 0


def _distant(cfg: ModelConfig) -> bool:
  return cfg.length is not None and cfg.length.method == 'self_extend'
