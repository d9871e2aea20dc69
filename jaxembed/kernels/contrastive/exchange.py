"""All-gather and ring collectives around masked_lse, over the axes of a mesh.

Rows and columns are split over the same mesh axes; a device keeps its rows.

gather: every device receives all columns, runs the kernel once, and the
  gradient of the columns is reduce-scattered in float32. One large kernel call;
  costs N*D of memory per device. The masks of the columns are taken whole: a loss
  that holds them on every device sends none.
ring: columns travel, a neighbour's block per step, with their masks and their
  running column sums; in the backward pass their float32 gradient travels with
  them and is home after the last hop. Memory stays O(N/P*D), and the next
  block is on its way while the kernel works on this one.

'auto' gathers while all columns take at most GATHER_BYTES. Sums and gradients are
of the global batch: no factor of the device count appears anywhere.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, cast

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxembed import mesh
from jaxembed.kernels import dispatch
from jaxembed.kernels.contrastive.options import MaskVectors, Options, Sums
from jaxembed.types import Array

GATHER_BYTES = 2 << 30  # 1M columns of 1024 in bfloat16
MODES = ('auto', 'gather', 'ring')


@dataclasses.dataclass(frozen=True)
class CommPlan:
  """Implementation, mesh axes and collectives of one call of masked_lse."""

  impl: str
  axes: tuple[str, ...] = ()
  mode: str = 'gather'


def pick(mode: str, axes: Sequence[str], k: Array) -> str:
  """The mode for columns k [N,D] (global)."""
  if mode not in MODES:
    raise ValueError(f'mode {mode!r} is unknown; choose one of {MODES}')
  if mode != 'auto' or not axes:
    return mode
  return 'gather' if k.size * k.dtype.itemsize <= GATHER_BYTES else 'ring'


def devices(axes: Sequence[str]) -> int:
  """Over how many devices `axes` of the mesh in force split the rows."""
  shape = jax.sharding.get_abstract_mesh().shape
  absent = [a for a in axes if a not in shape]
  if absent:
    raise ValueError(
        f'mesh axes {absent} are not in the mesh in force ({dict(shape)}); enter '
        'it with jax.set_mesh')
  return math.prod(shape[a] for a in axes)


def split_rows(tree: Any, axes: Sequence[str]) -> Any:
  """Every array of `tree` with its rows split over `axes`, and nothing else."""
  if not axes:
    return tree
  count = devices(axes)

  def place(x):
    if x.shape[0] % count:
      raise ValueError(
          f'{x.shape[0]} rows do not split over {count} devices {tuple(axes)}; pad '
          f'them to a multiple of {count}')
    return _whole_rows(x, axes, *(None,) * (x.ndim - 1))

  return jax.tree.map(place, tree)


def _whole_rows(x, *axes):
  held = mesh.axes_of(x)
  if x.ndim == 2 and held[1] is not None:
    raise ValueError(
        f'the width of an embedding {x.shape} is split over mesh axis {held[1]!r}; '
        'the scores need whole vectors: reshard with out_sharding=P(batch, None)')
  return mesh.reshard(x, *axes)  # without Explicit axes shard_map places it


def forward(fn: Callable, plan: CommPlan, q: jax.Array, k: jax.Array, scale: jax.Array,
            row: MaskVectors, col: MaskVectors, opts: Options
            ) -> tuple[Sums | None, Sums | None]:
  """`fn` (an implementation's forward) over the mesh. Global arrays in and out."""
  if not plan.axes:
    return fn(q, k, scale, row, col, opts)
  body: Callable = _ring_forward if plan.mode == 'ring' else _gather_forward
  rows = P(plan.axes)
  col, col_spec = _columns(plan, col)
  out = Sums(*cast(Any, (rows, rows, rows)))  # in place of its arrays
  return jax.shard_map(
      lambda *args: body(fn, plan.axes, *args, opts),
      in_specs=(rows, rows, P(), rows, col_spec),
      out_specs=(out if opts.rows else None, out if opts.cols else None),
      check_vma=False)(q, k, scale, row, col)


def backward(fn: Callable, plan: CommPlan, q: jax.Array, k: jax.Array, scale: jax.Array,
             row: MaskVectors, col: MaskVectors, opts: Options,
             lse: tuple[jax.Array | None, ...], cts: tuple[jax.Array | None, ...]
             ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`fn` (an implementation's backward) over the mesh: dq, dk, sum(q*dq)."""
  if not plan.axes:
    return fn(q, k, scale, row, col, opts, lse[0], cts[0], lse[1], cts[1],
              final=True)
  body: Callable = _ring_backward if plan.mode == 'ring' else _gather_backward
  rows = P(plan.axes)
  col, col_spec = _columns(plan, col)
  return jax.shard_map(
      lambda *args: body(fn, plan.axes, *args[:5], opts, *args[5:]),
      in_specs=(rows, rows, P(), rows, col_spec, (rows, rows), (rows, rows)),
      out_specs=(rows, rows, P()), check_vma=False)(
          q, k, scale, row, col, (lse[0], cts[0]), (lse[1], cts[1]))


def _columns(plan, col: MaskVectors) -> tuple[MaskVectors, P]:
  """The masks of the columns and how the body gets them: whole, or split to travel."""
  if plan.mode == 'ring':
    return split_rows(col, plan.axes), P(plan.axes)
  return jax.tree.map(mesh.replicate, col), P()


# --- Gather ------------------------------------------------------------------


def _all(tree, axes):
  return jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), tree)


def _narrow(k, axes, opts):
  """k in the operands' type, if it travels; else it is cast tile by tile."""
  return k if lax.axis_size(axes) == 1 else k.astype(opts.dtype)


def _gather_forward(fn, axes, q, k, scale, row, col, opts):
  # all-gather K over `axes`
  k = _all(_narrow(k, axes, opts), axes)
  rows, cols = fn(q, k, scale, row, col, opts)
  return rows, _combine(cols, axes) if opts.cols else None


def _combine(cols: Sums, axes) -> Sums:
  """Column sums over all devices' rows, each device keeping its own columns."""
  size = cols.lse.shape[0] // lax.axis_size(axes)

  def local_slice(x):
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size)

  def scatter(x):
    return lax.psum_scatter(x, axes, tiled=True)

  top = lax.pmax(cols.lse, axes)
  top = jnp.where(jnp.isfinite(top), top, 0)
  return Sums(jnp.log(scatter(jnp.exp(cols.lse - top))) + local_slice(top),
              scatter(cols.num_kept),
              local_slice(lax.pmax(cols.max_logit, axes)))


def _gather_backward(fn, axes, q, k, scale, row, col, opts, rows, cols):
  alone = lax.axis_size(axes) == 1
  # The all-gather of the forward pass again, which XLA runs once where both are near.
  k = _all(_narrow(k, axes, opts), axes)
  dq, dk, total = fn(q, k, scale, row, col, opts, *rows,
                     *_all(cols, axes), final=alone)
  # reduce-scatter dK, float32
  return (dq, dk if alone else lax.psum_scatter(dk, axes, tiled=True),
          lax.psum(total, axes))


# --- Ring --------------------------------------------------------------------


def _hop(tree, axes):
  size = lax.axis_size(axes)
  perm = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda x: lax.ppermute(x, axes, perm), tree)


def _merge(a: Sums, b: Sums) -> Sums:
  return Sums(jnp.logaddexp(a.lse, b.lse), a.num_kept + b.num_kept,
              jnp.maximum(a.max_logit, b.max_logit))


def _empty_sums(size, dtype) -> Sums:
  low = jnp.full((size,), -jnp.inf, dtype)
  return Sums(low, jnp.zeros((size,), jnp.int32), low)


def _ring_forward(fn, axes, q, k, scale, row, col, opts):
  def step(carry, _):
    rows, cols, k, col = carry
    following = _hop((k, col), axes)  # in flight while the kernel runs
    r, c = fn(q, k, scale, row, col, opts)
    rows = _merge(rows, r) if opts.rows else None
    cols = _hop(_merge(cols, c), axes) if opts.cols else None
    return (rows, cols, *following), None

  carry = (_empty_sums(q.shape[0], scale.dtype) if opts.rows else None,
           _empty_sums(k.shape[0], scale.dtype) if opts.cols else None,
           _narrow(k, axes, opts), col)
  # A scan, not an unrolled loop: unrolled, XLA starts every hop before the
  # first kernel and holds all blocks at once.
  (rows, cols, _, _), _ = lax.scan(step, carry, length=lax.axis_size(axes))
  return rows, cols


def _ring_backward(fn, axes, q, k, scale, row, col, opts, rows, cols):
  def step(carry, _):
    dq, dk, total, travel = carry
    # Both in flight while the kernel runs: the next block, and what the
    # neighbour has gathered for the gradient of the block in hand.
    following, arrived = _hop(travel, axes), _hop(dk, axes)
    k, col, cols = travel
    dqi, dki, more = fn(q, k, scale, row, col, opts, *rows, *cols)
    return (dq + dqi, arrived + dki, total + more, following), None

  carry = (jnp.zeros(q.shape, scale.dtype), jnp.zeros(k.shape, scale.dtype),
           jnp.zeros((), scale.dtype), (_narrow(k, axes, opts), col, cols))
  (dq, dk, total, _), _ = lax.scan(step, carry, length=lax.axis_size(axes))
  return dq, _hop(dk, axes), lax.psum(total, axes)


# --- Rows by index -----------------------------------------------------------


def take(x: Array, index: Array, axes: Sequence[str] = (), mode: str = 'gather'
         ) -> jax.Array:
  """x[index], split over `axes` as x [N,D] is: index [Q] -> [Q,D].

  Differentiable. Where every row asks for one that stands on its own device, no
  collective runs; that is found out as the program runs, without one where every
  device has the whole index, but on CPUs it is never looked for. In ring mode no device
  holds more than one block of x.
  """
  if not axes:
    return x[index]
  axes, count = tuple(axes), devices(axes)
  rows, own = P(axes), split_rows(index, axes)
  place = jnp.arange(index.size, dtype=index.dtype) // (index.size // count)
  near = jnp.all(index // (x.shape[0] // count) == place)
  return jax.shard_map(
      lambda x, index, near: _take(axes, mode, x, index, near),
      in_specs=(rows, rows, P()), out_specs=rows, check_vma=False)(x, own, near)


def _take(axes, mode, x, index, near):
  """Local part of `take`. Linear in x, and so is each of its steps."""
  def here(x):
    return x[index - lax.axis_index(axes) * x.shape[0]]

  if lax.axis_size(axes) == 1:
    return here(x)
  if not _can_branch():
    return _from_anywhere(axes, mode, x, index)
  # Every device comes to the same branch: none waits for another's collective.
  return lax.cond(near, here, lambda x: _from_anywhere(axes, mode, x, index), x)


def _can_branch() -> bool:
  """Whether a branch may hold a collective. Those of a program have one name in common
  on a CPU, where one in a branch could meet another outside of it."""
  return dispatch.platform() != 'cpu'


def _from_anywhere(axes, mode, x, index):
  if mode == 'gather':
    return lax.all_gather(x, axes, tiled=True)[index]
  size, here = x.shape[0], lax.axis_index(axes)

  def step(carry, i):
    out, block = carry
    # The block in hand started i devices to the left.
    local = index - (here - i) % lax.axis_size(axes) * size
    hit = (local >= 0) & (local < size)
    out = jnp.where(hit[:, None], block[jnp.clip(local, 0, size - 1)], out)
    return (out, _hop(block, axes)), None

  out = jnp.zeros((index.shape[0], x.shape[1]), x.dtype)
  (out, _), _ = lax.scan(step, (out, x), jnp.arange(lax.axis_size(axes)))
  return out
