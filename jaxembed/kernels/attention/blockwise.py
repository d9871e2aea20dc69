"""Attention by tiles of scores, with an online softmax and a backward pass of its own.

Memory grows with the length of a row, not with its square (Rabe and Staats 2021,
arXiv 2112.05682; Dao et al. 2022, FlashAttention, arXiv 2205.14135): the forward pass
keeps its output and each query's log-sum-exp, the backward pass computes the scores
again. Of each tile of queries only those tiles of keys are visited that the pattern
lets it see: texts that share a row cost about what they cost alone.

A row here is a key head of a row of texts, with the G query heads that it serves:
X = B*K rows. Rows are worked on a few at a time, as many as their scores stay in a
core's cache, or as an accelerator has room for.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from jaxembed.functional import accumulator
from jaxembed.kernels.attention.pattern import (
  ATTENTION,
  Pattern,
  by_distance,
  visible,
)
from jaxembed.kernels.attention.reference import MASKED
from jaxembed.types import Array

# Between MASKED and every score: the maximum of no key at all, so that masked keys
# weigh exp(MASKED - _NONE) = 0 there as well.
_NONE = 0.5 * MASKED
# Sides of a tile, and the scores that are worked on at a time. On a CPU, in float32,
# these are half of a core's level-2 cache.
_QUERIES = _KEYS = 512
CPU_SCORES, DEVICE_SCORES = 2**18, 2**26


class Form(NamedTuple):
  """What is known when the program is written."""

  causal: bool
  packed: bool
  masked: bool  # whether scores are compared with a mask
  softcap: float
  precision: str | None  # of products
  queries: int  # of a tile
  keys: int
  rows: int  # at a time


class Marks(NamedTuple):
  """What a tile of scores reads beside queries and keys."""

  query_text: Array  # [X,T] int32; negative: padding
  key_text: Array  # [X,S]
  prefix: Array | None  # [X,S] bool
  first: Array  # [] int32, the place of the first query among the keys
  limit: Array | None  # [] int32


def attend(q: Array, k: Array, v: Array, pattern: Pattern, *, scale: float,
           softcap: float = 0.0, bias: Array | None = None, first: Array | int = 0,
           cpu: bool = True) -> jax.Array:
  """As reference.attend, but zeros where a tile of queries sees no key.

  q [B,T,N,H] may be a part of the row: T queries from place `first` on; k, v
  [B,S,K,H] and the pattern are of the whole row; bias [N,2S-1].  -> [B,T,N,H].
  cpu: whether a few rows at a time are best. Arrays are local to a device.
  """
  batch, length, heads, width = q.shape
  span, groups = k.shape[1:3]
  form = _form(pattern, batch * groups, heads // groups, length, span, softcap,
               q.dtype, cpu)
  t, s = _up(length, form.queries), _up(span, form.keys)
  q *= jnp.asarray(scale, q.dtype)
  q = q.reshape(batch, length, groups, heads // groups, width)
  q = _rows(q, t).swapaxes(1, 2)  # [X,G,T,H]
  marks = _marks(pattern, first, length, groups, t, s)
  if bias is not None:
    bias = _distances(bias, groups, batch, t, s, span, first)
  out: Any = _attend(form, q, _rows(k, s), _rows(v, s), bias, marks)
  out = out[:, :, :length].reshape(batch, heads, length, width)
  return out.swapaxes(1, 2)


def _form(pattern: Pattern, rows: int, group: int, length: int, span: int,
          softcap: float, dtype, cpu: bool) -> Form:
  """Sizes of tiles: sides that split the row evenly, rows that divide all of them."""
  queries, keys = side(length, _QUERIES), side(span, _KEYS)
  budget = CPU_SCORES if cpu else DEVICE_SCORES
  while group * queries * keys > 2 * budget and queries > 64:
    queries = side(length, queries // 2)
  most = max(budget // (group * queries * keys), 1)
  rows = next(n for n in range(min(most, rows), 0, -1) if rows % n == 0)
  # On a CPU a pass over the scores is saved.
  masked = not (cpu and same_keys(pattern, softcap, dtype))
  return Form(pattern.causal, pattern.packed, masked, softcap, precision_of(dtype),
              queries, keys, rows)


def precision_of(dtype) -> str | None:
  """Of products of `dtype`: all of its bits, unless JAX's setting says otherwise."""
  settings: Any = jax.config
  asked = settings.jax_default_matmul_precision
  return 'highest' if asked is None and jnp.finfo(dtype).bits >= 32 else asked


def same_keys(pattern: Pattern, softcap: float, dtype) -> bool:
  """Whether all queries of a row attend to the same keys, those that are text, and
  `dtype` holds MASKED, which may then be added to scores."""
  plain = not (pattern.causal or pattern.packed or pattern.window or softcap)
  return plain and jnp.finfo(dtype).maxexp > 100


def _with_column(x: Array, value: Array | float) -> jax.Array:
  """x [...,H] -> [...,H+1], `value` in the last column."""
  column = jnp.broadcast_to(jnp.asarray(value, x.dtype), (*x.shape[:-1], 1))
  return jnp.concatenate([x, column], -1)


def side(length: int, most: int) -> int:
  """Of tiles of at most `most` that cover `length` with the least over; by eights."""
  return _up(math.ceil(length / math.ceil(length / most)), 8)


def _up(n: int, step: int) -> int:
  return -(-n // step) * step


def _rows(x: Array, length: int) -> jax.Array:
  """[B,T,K,...] -> [B*K,length,...], padded with zeros."""
  x = jnp.moveaxis(x, 2, 1)
  x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
  return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _marks(pattern: Pattern, first, length: int, groups: int, t: int, s: int) -> Marks:
  def widened(x, to, fill):
    x = jnp.pad(x, ((0, 0), (0, to - x.shape[1])), constant_values=fill)
    return jnp.repeat(x, groups, axis=0)

  queries = lax.dynamic_slice_in_dim(pattern.text, first, length, axis=1)
  limit = pattern.limit
  return Marks(
      widened(queries, t, -1), widened(pattern.text, s, -1),
      None if pattern.prefix is None else widened(pattern.prefix, s, False),
      jnp.asarray(first, jnp.int32),
      None if limit is None else jnp.asarray(limit, jnp.int32))


def _distances(bias: Array, groups: int, batch: int, t: int, s: int, span: int, first
               ) -> jax.Array:
  """bias [N,2*span-1] of distances 1-span.. -> [X,G,t+s-1] of 1-t-first.. ."""
  # Tiles reach beyond the row by less than a side on either end.
  bias = jnp.pad(bias.astype(jnp.float32), ((0, 0), (t, s)))
  bias = lax.dynamic_slice_in_dim(
      bias, span - jnp.asarray(first, jnp.int32), t + s - 1, axis=1)
  return jnp.tile(bias.reshape(groups, -1, t + s - 1), (batch, 1, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: Form, q, k, v, bias, marks: Marks) -> jax.Array:
  """q [X,G,T,H], k [X,S,H], v [X,S,H], bias [X,G,T+S-1] -> [X,G,T,H]."""
  out: Any = _forward(form, q, k, v, bias, marks)[0]
  return out


def _forward(form: Form, q, k, v, bias, marks: Marks):
  out, lse = _over_rows(functools.partial(_forward_rows, form, marks), form,
                        (q, k, v, bias, marks.query_text, marks.key_text,
                         marks.prefix))
  out, lse = checkpoint_name(out, ATTENTION), checkpoint_name(lse, ATTENTION)
  return out, (q, k, v, bias, marks, out, lse)


def _backward(form: Form, kept, g):
  q, k, v, bias, marks, out, lse = kept
  dq, dk, dv, dbias = _over_rows(
      functools.partial(_backward_rows, form, marks), form,
      (q, k, v, bias, marks.query_text, marks.key_text, marks.prefix, out, lse, g))
  return dq, dk, dv, dbias, None


_attend.defvjp(_forward, _backward)


def _over_rows(f, form: Form, arrays):
  """f of [rows,...] parts of arrays [X,...], one after the other."""
  total = arrays[0].shape[0]
  if total == form.rows:
    return f(*arrays)
  parts = jax.tree.map(
      lambda x: x.reshape(total // form.rows, form.rows, *x.shape[1:]), arrays)
  out = lax.map(lambda part: f(*part), parts)
  return jax.tree.map(lambda x: x.reshape(total, *x.shape[2:]), out)


def _forward_rows(form: Form, marks: Marks, q, k, v, bias, query_text, key_text,
                  prefix):
  """(out [R,G,T,H], log-sum-exp [R,G,T,1])."""
  marks = marks._replace(query_text=query_text, key_text=key_text, prefix=prefix)
  wide = accumulator(q.dtype)
  low, high = _bounds(form, marks)
  q, k = _score_terms(form, marks, q, k)
  # One more column of ones: the last column of the output is the sum of the weights.
  v = _with_column(v, 1.0)

  def tile(i):
    rows = _part(q, i, form.queries, 2)

    def step(j, carry):
      top, total = carry
      s = _scores(form, marks, rows, k, bias, i, j)[0]
      new = jnp.maximum(top, s.max(-1, keepdims=True))
      weights = jnp.exp(s - new).astype(v.dtype)
      more = _product(form, 'XGTS,XSH->XGTH', weights, _part(v, j, form.keys, 1))
      return new, total * jnp.exp(top - new) + more

    start = (jnp.full((*rows.shape[:3], 1), _NONE, wide),
             jnp.zeros((*rows.shape[:3], v.shape[-1]), wide))
    top, total = _visit(low[i], high[i], step, start, key_text.shape[1] // form.keys)
    weight = total[..., -1:]
    seen = weight > 0
    out = total[..., :-1] / jnp.where(seen, weight, 1)
    return out.astype(q.dtype), jnp.where(seen, top + jnp.log(weight), 0)

  return _over_tiles(tile, q.shape[2] // form.queries)


def _backward_rows(form: Form, marks: Marks, q, k, v, bias, query_text, key_text,
                   prefix, out, lse, g):
  """Gradients of q, k, v and bias, of the shapes that these have."""
  marks = marks._replace(query_text=query_text, key_text=key_text, prefix=prefix)
  low, high = _bounds(form, marks)
  queries, keys = _score_terms(form, marks, q, k)
  delta = (out.astype(lse.dtype) * g.astype(lse.dtype)).sum(-1, keepdims=True)

  def tile(i, sums):
    rows, grads = _part(q, i, form.queries, 2), _part(g, i, form.queries, 2)
    lse_i, delta_i = (_part(x, i, form.queries, 2) for x in (lse, delta))

    def step(j, carry):
      dq, dk, dv, dbias = carry
      s, slope = _scores(form, marks, _part(queries, i, form.queries, 2), keys, bias,
                         i, j)
      weights = jnp.exp(s - lse_i)
      dv = _add(dv, j, form.keys, _product(
          form, 'XGTS,XGTH->XSH', weights.astype(v.dtype), grads))
      ds = _product(form, 'XGTH,XSH->XGTS', grads, _part(v, j, form.keys, 1))
      ds = weights * (ds - delta_i)
      if bias is not None:
        dbias = _add_tile_bias(form, marks, dbias, i, j, ds)
      ds = (ds * slope).astype(q.dtype)
      dk = _add(dk, j, form.keys, _product(form, 'XGTS,XGTH->XSH', ds, rows))
      dq += _product(form, 'XGTS,XSH->XGTH', ds, _part(k, j, form.keys, 1))
      return dq, dk, dv, dbias

    start = jnp.zeros(rows.shape, lse.dtype), *sums
    dq, *sums = _visit(low[i], high[i], step, start, key_text.shape[1] // form.keys)
    return dq.astype(q.dtype), tuple(sums)

  sums = (jnp.zeros(k.shape, lse.dtype), jnp.zeros(v.shape, lse.dtype),
          None if bias is None else jnp.zeros(bias.shape, lse.dtype))
  dq, (dk, dv, dbias) = _over_tiles(tile, q.shape[2] // form.queries, sums)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), dbias


def _score_terms(form: Form, marks: Marks, q, k) -> tuple[jax.Array, jax.Array]:
  """q and k as scores are made of them: without a mask, one more term is MASKED."""
  if form.masked:
    return q, k
  padding = jnp.where(marks.key_text < 0, MASKED, 0.0)[..., None]
  return _with_column(q, 1.0), _with_column(k, padding)


def _scores(form: Form, marks: Marks, rows, k, bias, i, j):
  """Tile (i, j) of scores [X,G,t,s], and their slope in q k (1, or under a cap)."""
  s = _product(form, 'XGTH,XSH->XGTS', rows, _part(k, j, form.keys, 1))
  slope = 1.0
  if form.softcap:
    tanh = jnp.tanh(s / form.softcap)
    s, slope = form.softcap * tanh, 1 - tanh * tanh
  if bias is not None:
    s += _tile_bias(form, marks, bias, i, j)
  if not form.masked:
    return s, slope
  seen = visible(
      _part(marks.query_text, i, form.queries, 1),
      _part(marks.key_text, j, form.keys, 1), *_places(form, marks, i, j),
      None if marks.prefix is None else _part(marks.prefix, j, form.keys, 1),
      form.causal, marks.limit, form.packed)
  return jnp.where(seen[:, None], s, MASKED), slope


def _places(form: Form, marks: Marks, i, j):
  """Places of the queries and the keys of tile (i, j)."""
  return (marks.first + i * form.queries + jnp.arange(form.queries, dtype=jnp.int32),
          j * form.keys + jnp.arange(form.keys, dtype=jnp.int32))


def _bounds(form: Form, marks: Marks) -> tuple[jax.Array, jax.Array]:
  """Of each tile of queries, the first tile of keys that any sees, and the one after
  the last.  [T/t] int32 each; both 0 where no query sees anything."""
  share = shared_tiles(
      marks.query_text, marks.key_text, marks.first, form.queries, form.keys,
      form.causal and marks.prefix is None, marks.limit).any(0)
  some = share.any(1)
  low = jnp.argmax(share, axis=1)
  high = share.shape[1] - jnp.argmax(share[:, ::-1], axis=1)
  return jnp.where(some, low, 0), jnp.where(some, high, 0)


def shared_tiles(query_text: Array, key_text: Array, first: Array, queries: int,
                 keys: int, causal: bool, limit: Array | None) -> jax.Array:
  """The tiles of scores in which a query may see a key.

  query_text [X,T], key_text [X,S]: see Marks.  -> [X,T/queries,S/keys] bool. A tile
  may hold several texts and counts as holding all numbers between them.
  """
  def ends(text, side):
    text = text.reshape(text.shape[0], -1, side)
    big = jnp.iinfo(text.dtype).max
    return jnp.where(text < 0, big, text).min(-1), text.max(-1)

  (q_low, q_high), (k_low, k_high) = ends(query_text, queries), ends(key_text, keys)
  share = ((q_low[:, :, None] <= k_high[:, None])
           & (k_low[:, None] <= q_high[:, :, None]))
  i, j = (jnp.arange(n, dtype=jnp.int32) for n in share.shape[1:])
  places = first + i * queries
  nearest = j[None] * keys - (places + queries - 1)[:, None]  # key minus query
  farthest = (j * keys + keys - 1)[None] - places[:, None]
  if causal:
    share &= nearest <= 0
  if limit is not None:
    share &= (nearest < limit) & (farthest > -limit)
  return share


def _visit(low, high, step, start, tiles: int):
  """`step` over tiles low..high-1 of keys."""
  if tiles == 1:
    return step(0, start)
  return lax.fori_loop(low, high, step, start)


def _over_tiles(tile: Callable, count: int, sums: Any = None) -> Any:
  """tile(i) of all tiles of queries, side by side on axis 2; with `sums`,
  tile(i, sums) -> (out, sums)."""
  body: Callable = tile if sums is not None else lambda i, _: (tile(i), None)
  if count == 1:
    out, sums = body(0, sums)
  else:
    sums, out = lax.scan(lambda c, i: body(i, c)[::-1], sums, jnp.arange(count))
    out = jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[-1]), out)
  return out if sums is None else (out, sums)


def _product(form: Form, letters: str, a, b) -> jax.Array:
  return jnp.einsum(letters, a, b, precision=form.precision,
                    preferred_element_type=accumulator(a.dtype))


def _part(x, i, side: int, axis: int):
  """Tile i of `side` along an axis."""
  if x.shape[axis] == side:
    return x
  return lax.dynamic_slice_in_dim(x, i * side, side, axis)


def _add(x, j, side: int, more):
  """x [X,S,H] with `more` added to tile j."""
  if x.shape[1] == side:
    return x + more
  return lax.dynamic_update_slice_in_dim(x, _part(x, j, side, 1) + more, j * side, 1)


def _span(form: Form, marks: Marks, i, j):
  """Where the distances of tile (i, j) begin in bias [X,G,T+S-1], and how many."""
  length = marks.query_text.shape[1]
  return j * form.keys + length - (i + 1) * form.queries, form.queries + form.keys - 1


def _tile_bias(form: Form, marks: Marks, bias, i, j) -> jax.Array:
  start, width = _span(form, marks, i, j)
  return by_distance(lax.dynamic_slice_in_dim(bias, start, width, 2),
                     form.queries, form.keys)


def _add_tile_bias(form: Form, marks: Marks, total, i, j, tile) -> jax.Array:
  """Transpose of `_tile_bias`: `total` with the sums over the tile's diagonals."""
  _, transpose = jax.vjp(lambda b: _tile_bias(form, marks, b, i, j), total)
  return total + transpose(tile)[0]
