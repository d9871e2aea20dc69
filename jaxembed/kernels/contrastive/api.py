"""Masked log-sum-exp of scaled similarities: the primitive of contrastive losses.

  s_ij   = <q_i, k_j>                    raw similarity
  z_ij   = scale * s_ij + bias_j         rows; with bias_i for columns
           (scale_i where rows have their own, scale_j where columns have)
  row_i  = log sum_j keep_ij exp(z_ij)   col_j = log sum_i keep_ij exp(z_ij)

Masks are vectors per side (`MaskVectors`) and are evaluated inside the tile. The VJP
covers both outputs and the scale; everything else about a loss is O(B*D) around
it, with ordinary autodiff.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from jaxembed import mesh
from jaxembed.kernels import choices, dispatch
from jaxembed.kernels.contrastive import blockwise, exchange, gpu, reference, tpu
from jaxembed.kernels.contrastive.options import NO_MASK, MaskVectors, Options, Sums
from jaxembed.types import Array

_IMPLS = {'reference': reference, 'blockwise': blockwise, 'tpu': tpu, 'gpu': gpu}


def masked_lse(q: Array, k: Array, *, scale: Array | float, row: MaskVectors = NO_MASK,
               col: MaskVectors = NO_MASK, directions: tuple[str, ...] = ('row',),
               bounded: bool | None = False,
               hardness: tuple[float, float] = (0.0, 0.0), dtype: Any = None,
               impl: str = 'auto', tile_bytes: int = 0, axes: tuple[str, ...] = (),
               mode: str = 'auto', interpret: bool = False
               ) -> tuple[Sums | None, Sums | None]:
  """Masked log-sum-exp of scale*q@k.T over columns and/or over rows.

  q [B,D], k [N,D]: float32, bfloat16 or float64, of one type. Operands of the
  products are cast to `dtype` (default: left as they are); products are accumulated,
  sums kept and gradients formed in float32 (float64 for float64).
  scale: [] float or, with one direction, a vector for its side ([B] for rows, [N] for
    columns); differentiable. row, col: masks, not differentiable.
  directions: 'row', 'col' or both; one tile serves both.
  bounded: q and k have unit rows, so a constant replaces the running maximum;
    a row whose every logit underflows then has num_kept > 0 and lse = -inf. None:
    it would hold, and the kernels that gain by it may do so.
  hardness: alpha of scale*s + alpha*stop_gradient(s) for pairs of (equal
    owner, any other); without owners the second counts.
  impl: 'auto' or one of dispatch.IMPLS. tile_bytes: see Options.
  axes: mesh axes over which the rows of q, of k and of their sides are split;
    () computes on one device. mode: 'gather', 'ring' or 'auto', see exchange.
  interpret: run Pallas kernels in their interpreter, on any platform (tests).

  Returns (row Sums or None, col Sums or None). `lse` is differentiable in q, k
  and scale, once: a second derivative raises. A row without a kept pair has
  lse = -inf and takes no gradient.

  Raises ValueError on shapes, types or options that do not fit, and
  dispatch.Unsupported if a named impl cannot run here.
  """
  unknown = set(directions) - {'row', 'col'}
  if unknown or not directions:
    raise ValueError(f"directions {directions} must be 'row', 'col' or both")
  where = dispatch.platform()
  kind = jnp.dtype(dtype or q.dtype)
  chosen = _pick(impl, q, k, kind, row, axes)
  opts = Options(
      dtype=kind.name,
      bounded=chosen in ('tpu', 'gpu') if bounded is None else bounded,
      rows='row' in directions, cols='col' in directions,
      hardness=(float(hardness[0]), float(hardness[1])),
      round_dlogits=where != 'cpu' or interpret,
      interpret=interpret,
      tile_bytes=tile_bytes or blockwise.TILE_BYTES.get(
          where, blockwise.TILE_BYTES_DEFAULT))
  _check(q, k, row, col)
  _check_scale(scale, q, k, directions)
  if tile_bytes < 0:
    raise ValueError(f'tile_bytes is {tile_bytes}; give at least 0')
  run = exchange.CommPlan(impl=chosen, axes=tuple(axes),
                          mode=exchange.pick(mode, axes, k))
  if row.guide is not None and run.impl in ('tpu', 'gpu'):
    raise dispatch.Unsupported(f"impl {impl!r} has no masks by a guide; use "
                               "'blockwise' (what 'auto' takes)")
  scale = jnp.asarray(scale, jnp.promote_types(q.dtype, jnp.float32))
  if scale.ndim:
    row, col = _own_scales(scale, row, col, directions)
    scale = jnp.ones((), scale.dtype)
  q, k, row = exchange.split_rows((q, k, row), run.axes)
  return _masked_lse(opts, run, q, k, scale, row, col)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _masked_lse(opts, run, q, k, scale, row, col):
  return _fwd(opts, run, q, k, scale, row, col)[0]


def _fwd(opts, run, q, k, scale, row, col):
  out = exchange.forward(_IMPLS[run.impl].forward, run, q, k, scale, row, col, opts)
  lse = tuple(None if x is None else x.lse for x in out)
  return out, (q, k, scale, row, col, lse)


def _bwd(opts, run, residuals, cts):
  q, k, scale, row, col, lse = residuals
  cts = tuple(None if x is None else x.lse for x in cts)
  dq, dk, total = _once(exchange.backward(
      _IMPLS[run.impl].backward, run, q, k, scale, row, col, opts, lse, cts))
  # z depends on scale through scale*s alone, and sum_j ds_ij s_ij = <q_i,dq_i>.
  dscale = total / scale
  return (dq.astype(q.dtype), dk.astype(k.dtype), dscale.astype(scale.dtype),
          _side_gradients(row, q, dq, opts), _side_gradients(col, k, dk, opts))


def _side_gradients(side: MaskVectors, x, dx, opts):
  """Cotangents of a side: of its scales, as for the common one, row by row."""
  out = jax.tree.map(_no_gradient, side)
  if side.scale is None:
    return out
  x = x.astype(opts.dtype).astype(side.scale.dtype)
  total = mesh.reshard(jnp.sum(x * dx, -1, dtype=side.scale.dtype),
                       *mesh.axes_of(side.scale))
  return dataclasses.replace(out, scale=total / side.scale)


_masked_lse.defvjp(_fwd, _bwd)


@jax.custom_jvp
def _once(gradients):
  return gradients


@_once.defjvp
def _twice(primals, tangents):
  raise dispatch.Unsupported(
      'masked_lse has no second derivative: it would keep every tile of the first; '
      'differentiate a dense log-sum-exp instead')


def _no_gradient(x):
  if jnp.issubdtype(x.dtype, jnp.integer):
    return np.zeros(x.shape, jax.dtypes.float0)
  return jnp.zeros_like(x)


def _own_scales(scale, row: MaskVectors, col: MaskVectors, directions):
  """(row, col) with the scales of the one direction in use."""
  if 'row' in directions:
    return dataclasses.replace(row, scale=scale), col
  return row, dataclasses.replace(col, scale=scale)


def _pick(impl: str, q, k, dtype, row: MaskVectors, axes) -> str:
  """The implementation to run; of 'auto' as kernels.choices has it for this chip."""
  if dispatch.check_impl(impl) != 'auto':
    return impl
  if row.guide is not None or q.ndim != 2 or k.ndim != 2:
    return 'blockwise'
  width, parts = q.shape[1], exchange.devices(axes)
  rows, columns = len(q) // parts, len(k) // parts
  found = choices.choose('contrastive', rows=min(rows, columns), width=width,
                         dtype=dtype, chip=choices.chip()).impl
  fits = found != 'gpu' or not gpu.uneven_sizes(rows, width, columns)
  return found if fits else 'blockwise'


def _check(q, k, row: MaskVectors, col: MaskVectors):
  if q.ndim != 2 or k.ndim != 2 or q.shape[1] != k.shape[1]:
    raise ValueError(
        f'q {q.shape} and k {k.shape} must be [B,D] and [N,D] with one D')
  if q.dtype != k.dtype or q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
    raise ValueError(
        f'q is {q.dtype} and k is {k.dtype}; cast both to float32 or both to '
        'bfloat16')
  if not q.shape[0] or not k.shape[0]:
    raise ValueError(f'q {q.shape} and k {k.shape} need at least one row each')
  if len(row.ids) != len(col.ids):
    raise ValueError(
        f'{len(row.ids)} ids per row but {len(col.ids)} per column; they are '
        'compared place by place, give the same number')
  for name in ('group', 'owner', 'guide'):
    if (getattr(row, name) is None) != (getattr(col, name) is None):
      raise ValueError(f'{name} is given on one side only; give both or neither')
  for where, side, size in (('row', row, q.shape[0]), ('col', col, k.shape[0])):
    named = {f'ids[{i}]': x for i, x in enumerate(side.ids)}
    named |= {f: getattr(side, f) for f in (
        'group', 'owner', 'threshold', 'bias', 'guide_limit')}
    _check_guide(where, side, size, row.guide)
    if side.scale is not None:
      raise ValueError(f'{where}.scale is set; give masked_lse the vector as scale')
    for name, x in named.items():
      if x is None:
        continue
      if x.shape != (size,):
        raise ValueError(f'{where}.{name} has shape {x.shape}, not ({size},)')
      real = name in ('threshold', 'bias', 'guide_limit')
      if real and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f'{where}.{name} is {x.dtype}; it must be a float')
      if not real and x.dtype != jnp.int32:
        raise ValueError(
            f'{where}.{name} is {x.dtype}; ids must be int32 (a 31-bit hash)')


def _check_guide(where, side: MaskVectors, size, of_rows):
  if side.guide is None:
    if side.guide_limit is not None:
      raise ValueError(f'{where}.guide_limit is set, and no guide; give both sides one')
    return
  width = of_rows.shape[-1]
  if side.guide.shape != (size, width) or side.guide.dtype != jnp.float32:
    raise ValueError(f'{where}.guide is {side.guide.dtype} {side.guide.shape}; give '
                     f'float32 ({size}, {width})')


def _check_scale(scale, q, k, directions):
  shape = jnp.shape(scale)
  if not isinstance(scale, Tracer) and not np.all(np.asarray(scale) > 0):
    raise ValueError(f'scale {scale} (1/temperature) must be above 0')
  if not shape:
    return
  if len(set(directions)) > 1:
    raise ValueError(f'scale {shape} is a vector and directions are {directions}: the '
                     'two sums want scales of their own; ask for one direction')
  size = (q if 'row' in directions else k).shape[0]
  if shape != (size,):
    raise ValueError(f'scale has shape {shape}, not () or ({size},)')
