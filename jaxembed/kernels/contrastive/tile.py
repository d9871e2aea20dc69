"""Masks, logits and running sums of one tile of scores, for every tiled kernel.

Row vectors arrive as [M,1], column vectors as [1,N], so that masks are formed
by broadcasting inside the tile and only those in use are traced.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.kernels.contrastive.options import (
  BOUND,
  MASKED,
  MaskVectors,
  Options,
  Sums,
)

# Where running maxima start: above MASKED, so that exp(MASKED - FLOOR) is 0,
# and below every logit of finite embeddings.
FLOOR = -1e25


def side_scale(scale: jax.Array, *sides: MaskVectors) -> jax.Array:
  """The scale of a direction's logits: its side's own, if it has one.

  Where a side has scales, its direction is the only one (api.masked_lse).
  """
  return next((x.scale for x in sides if x.scale is not None), scale)


def logits(s: jax.Array, scale: jax.Array, row: MaskVectors, col: MaskVectors,
           opts: Options) -> tuple[Any, Any]:
  """Masked logits of both directions.

  s [M,N] float32, raw similarities; row vectors [M,1], column vectors [1,N].
  Returns ((zr, keep_r), (zc, keep_c)), an entry per direction in use, else
  None; keep is None where nothing can be masked.
  """
  keep = own = None
  for a, b in zip(row.ids, col.ids, strict=True):
    keep = _both(keep, a != b)
  if row.owner is not None:
    own = row.owner == col.owner
  meet = own
  if row.group is not None:
    same = row.group == col.group
    meet = same if own is None else same | own
  keep = _both(keep, meet)
  scale = side_scale(scale, row, col)
  alpha_own, alpha = opts.hardness
  if own is None or alpha_own == alpha:
    z = s * (scale + alpha)
  else:
    z = s * (scale + jnp.where(own, alpha_own, alpha).astype(s.dtype))
  guided = (None if row.guide is None or col.guide is None else
            _guided(row.guide[:, 0], col.guide[0]))
  rows = _direction(z, s, keep, row, col, guided) if opts.rows else None
  if rows and all(x is None for x in (
      row.threshold, col.threshold, row.bias, col.bias, guided)):
    return rows, rows if opts.cols else None
  return rows, _direction(z, s, keep, col, row, guided) if opts.cols else None


def _guided(row, col):
  """Products of guides, exact: [M,G], [N,G] -> [M,N]."""
  return lax.dot_general(row, col, (((1,), (1,)), ((), ())),
                         precision=precision.of_dtype(row.dtype),
                         preferred_element_type=row.dtype)


def _both(a, b):
  return a if b is None else b if a is None else a & b


def _direction(z, s, keep, own, other, guided):
  """The masked logits that the side `own` sums, and which are kept."""
  if own.threshold is not None:
    # A NaN is kept, and seen. (Mosaic lowers no negation of a mask for GPUs.)
    keep = _both(keep, (s <= own.threshold) | (s != s))
  if guided is not None and own.guide_limit is not None:
    keep = _both(keep, ~(guided > own.guide_limit))
  if other.bias is not None:
    z = z + other.bias
    keep = _both(keep, other.bias != -jnp.inf)
  return (z if keep is None else jnp.where(keep, z, MASKED)), keep


def shift(scale: jax.Array, opts: Options) -> jax.Array:
  """The constant subtracted from every logit in bounded mode."""
  return BOUND * (scale + opts.alpha_max)


def probabilities(directions: tuple[Any, Any], scale: jax.Array, opts: Options,
                  row_ct: Any, col_ct: Any, exp: Callable = jnp.exp) -> jax.Array:
  """Gradient of the log-sum-exps with respect to the raw similarities.  [M,N].

  row_ct, col_ct: `backward_vectors` as [M,1] and [1,N]. In bounded mode rows and
  columns subtract one constant and can share an exponential. exp: that of the logits'
  base.
  """
  rows, cols = directions
  if opts.bounded and rows and cols and rows[0] is cols[0]:
    return exp(rows[0] - shift(scale, opts)) * (row_ct[1] + col_ct[1])
  parts = []
  for direction, ct in ((rows, row_ct), (cols, col_ct)):
    if direction:
      sub = shift(scale, opts) if opts.bounded else ct[0]
      parts.append(exp(direction[0] - sub) * ct[1])
  return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def backward_vectors(lse: jax.Array, ct: jax.Array, scale: jax.Array, opts: Options
                     ) -> tuple[jax.Array | None, jax.Array]:
  """(lse, cotangent * scale) of one direction as `probabilities` wants them.

  In bounded mode (None, cotangent * scale * exp(shift - lse)): the shift is a constant.
  scale: [] or, as lse and its cotangent, [N].
  """
  empty = lse == -jnp.inf
  lse, ct = jnp.where(empty, 0, lse), jnp.where(empty, 0, ct * scale)
  return (None, ct * jnp.exp(shift(scale, opts) - lse)) if opts.bounded else (lse, ct)


def start(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Empty running sums: maximum, sum, count."""
  return jnp.full(shape, FLOOR, dtype), jnp.zeros(shape, dtype), jnp.zeros(
      shape, jnp.int32)


def add(running: tuple[jax.Array, jax.Array, jax.Array],
        direction: tuple[jax.Array, jax.Array | None], axis: int, scale: jax.Array,
        opts: Options) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Running sums with one more tile, reduced over `axis`.

  scale: of the direction's logits, [] or as the running sums. In bounded mode the sum
  is of exponentials less the constant shift, and the maximum is kept beside it.
  """
  top, total, kept = running
  z, keep = direction
  new = jnp.maximum(top, z.max(axis))
  sub = shift(scale, opts) if opts.bounded else new
  more = jnp.exp(z - (jnp.expand_dims(sub, axis) if sub.ndim else sub)).sum(axis)
  total = (total if opts.bounded else total * jnp.exp(top - new)) + more
  count = z.shape[axis] if keep is None else keep.sum(axis, dtype=jnp.int32)
  return new, total, kept + count


def merge(parts: tuple[jax.Array, jax.Array, jax.Array], opts: Options
          ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Running sums of several sets of tiles, each [sets,N], as those of all."""
  top, total, kept = parts
  best = top.max(0)
  if not opts.bounded:
    total = total * jnp.exp(top - best)
  return best, total.sum(0), kept.sum(0, dtype=jnp.int32)


def finish(running: tuple[jax.Array, jax.Array, jax.Array], scale: jax.Array,
           opts: Options) -> Sums:
  """Log-sum-exps of the running sums, of logits of that scale."""
  top, total, kept = running
  less = shift(scale, opts) if opts.bounded else top
  # A sum that is NaN is not an empty one: the test is for 0.
  lse = jnp.where(total == 0, -jnp.inf, less + jnp.log(total))
  return Sums(lse.astype(top.dtype), kept, jnp.where(kept > 0, top, -jnp.inf))


def as_column(vectors: Any) -> Any:
  """A tree of vectors, each as a column, [N,1]."""
  return jax.tree.map(lambda x: x[:, None], vectors)


def as_row(vectors: Any) -> Any:
  """A tree of vectors, each as a row, [1,N]."""
  return jax.tree.map(lambda x: x[None, :], vectors)
