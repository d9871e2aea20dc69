"""The head on blocks of tokens: folded attention, GEGLU, sums per segment.

Two operations, each with its own VJP, so that the caller may sum over a mesh
axis between them:

  attend      x -> softmax(LN(x) M) U         keeps the softmax, [tokens, N*R]
  geglu_sums  x -> sum_t GEGLU(LN(x) W + b)   keeps the pre-activations,
                                              [tokens, 2F], in the states' dtype

What is elementwise (LayerNorm, GELU, softmax' derivative) is computed again in
the backward pass; no matrix product is. Working memory beside what is kept is
that of one block. Tokens come in chunks: x [C,T,D], each chunk from one row of
text and `pieces` of them side by side from the same, `segments` [C,T] int32 naming the
sum of its row that each token belongs to, or -1.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxembed.functional import accumulator, geglu, layer_norm
from jaxembed.precision import einsum
from jaxembed.types import Params


def default_block(tokens: int) -> int:
  """Tokens a block aims at.

  An eighth of all: what a block needs is then small beside what all blocks keep.
  At least 2048, so that reading the kernels and accumulating their gradients is
  hidden behind products; at most 8192, where nothing more is gained.
  """
  return min(max(tokens // 8, 2048), 8192)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(token_block: int, norm: Params, w_in: jax.Array, w_out: jax.Array,
           x: jax.Array, segments: jax.Array) -> jax.Array:
  """Cross-attention to the folded latents. x [C,T,D] -> [C,T,D].

  norm {scale, bias} [D], w_in [D,N,R], w_out [N,R,D]; float32 softmax. Tokens of
  no segment are taken as zeros.
  """
  return _attend_fwd(token_block, norm, w_in, w_out, x, segments)[0]


def _attend_fwd(token_block, norm, w_in, w_out, x, segments):
  def block(_, blocks):
    y = _clean_norm(norm, *blocks)
    x, _ = blocks
    logits = einsum('CTD,DNR->CTNR', y, w_in,
                    preferred_element_type=accumulator(x.dtype))
    weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
    return None, (einsum('CTNR,NRD->CTD', weights, w_out), weights)

  _, (out, weights) = over_blocks(block, None, (x, segments), token_block)
  return out, (norm, w_in, w_out, x, segments, weights)


def _attend_bwd(token_block, residuals, d_out):
  norm, w_in, w_out, x, segments, weights = residuals
  acc = accumulator(x.dtype)

  def block(grads, blocks):
    x, segments, weights, d_out = blocks
    y, norm_vjp = jax.vjp(lambda norm, x: _clean_norm(norm, x, segments), norm, x)
    d_weights = einsum('CTD,NRD->CTNR', d_out, w_out,
                       preferred_element_type=acc)
    wide = weights.astype(acc)
    d_logits = wide * (d_weights - jnp.sum(wide * d_weights, -1, keepdims=True))
    d_logits = d_logits.astype(x.dtype)
    d_norm, d_x = norm_vjp(einsum('CTNR,DNR->CTD', d_logits, w_in))
    new = (d_norm,
           einsum('CTD,CTNR->DNR', y, d_logits, preferred_element_type=acc),
           einsum('CTNR,CTD->NRD', weights, d_out, preferred_element_type=acc))
    return add(grads, new), d_x

  zeros = wide_zeros((norm, w_in, w_out))
  grads, d_x = over_blocks(
      block, zeros, (x, segments, weights, d_out), token_block)
  return *like(grads, (norm, w_in, w_out)), d_x, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def geglu_sums(token_block: int, num_segments: int, pieces: int, norm: Params,
               mlp: Params, x: jax.Array, segments: jax.Array) -> jax.Array:
  """Sum over each segment's tokens of the gated feed-forward, before `down`.

  norm {scale, bias} [D], mlp {up, gate} of {kernel [D,F], bias [F]}, x [C,T,D],
  segments [C,T] -> [C/pieces,S,F] float32 (float64 for float64 states).
  """
  return _sums_fwd(token_block, num_segments, pieces, norm, mlp, x, segments)[0]


def _sums_fwd(token_block, num_segments, pieces, norm, mlp, x, segments):
  def block(_, blocks):
    x, segments = blocks
    up, gate = project(mlp, layer_norm(x, **norm))
    acc = accumulator(x.dtype)
    inner = geglu(up.astype(acc), gate.astype(acc))
    return None, (segment_sum(inner, segments, num_segments), up, gate)

  _, (sums, up, gate) = over_blocks(block, None, (x, segments), token_block)
  return of_rows(sums, pieces), (norm, mlp, x, segments, up, gate)


def sums_vjp(token_block: int, num_segments: int, pieces: int, residuals: Any,
             d_sums: jax.Array) -> tuple[Params, Params, jax.Array, None]:
  """Gradients of `geglu_sums` in norm, mlp and x, from what a forward pass kept.

  residuals: norm, mlp, x, segments and both pre-activations [C,T,F].
  """
  del num_segments
  norm, mlp, x, segments, up, gate = residuals
  acc = accumulator(x.dtype)

  def block(grads, blocks):
    x, segments, row, up, gate = blocks
    _, vjp = jax.vjp(geglu, up.astype(acc), gate.astype(acc))
    d_up, d_gate = vjp(segment_spread(d_sums[row[:, 0]], segments))
    new, d_x = project_vjp(norm, mlp, x, d_up.astype(x.dtype), d_gate.astype(x.dtype))
    return add(grads, new), d_x

  zeros = wide_zeros((norm, mlp))
  grads, d_x = over_blocks(
      block, zeros, (x, segments, row_of_chunk(x, pieces), up, gate), token_block)
  return *like(grads, (norm, mlp)), d_x, None


attend.defvjp(_attend_fwd, _attend_bwd)
geglu_sums.defvjp(_sums_fwd, sums_vjp)


def of_rows(sums: jax.Array, pieces: int) -> jax.Array:
  """Sums of chunks [C,...] -> of their rows [C/pieces,...]."""
  if pieces == 1:
    return sums
  return jnp.sum(sums.reshape(-1, pieces, *sums.shape[1:]), axis=1)


def row_of_chunk(x: jax.Array, pieces: int) -> jax.Array:
  """The place among rows of each chunk of x [C,T,D], [C,1] int32: a row's cotangents
  are found by it, not repeated for each of its chunks."""
  return jnp.arange(len(x), dtype=jnp.int32)[:, None] // pieces


def project(mlp: Params, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Pre-activations (up, gate). y [C,T,D] -> two [C,T,F] in y's dtype."""
  acc = accumulator(y.dtype)

  def linear(p):
    z = einsum('CTD,DF->CTF', y, p['kernel'].astype(y.dtype),
               preferred_element_type=acc)
    return (z + p['bias'].astype(acc)).astype(y.dtype)

  return linear(mlp['up']), linear(mlp['gate'])


def project_vjp(norm: Params, mlp: Params, x: jax.Array, d_up: jax.Array,
                d_gate: jax.Array) -> tuple[tuple[Params, Params], jax.Array]:
  """Gradients of `project` after the norm, kernels' and biases' in float32.

  x [C,T,D], d_up and d_gate [C,T,F] -> ((d_norm, d_mlp), d_x [C,T,D]).
  """
  acc = accumulator(x.dtype)
  y, norm_vjp = jax.vjp(lambda norm, x: layer_norm(x, **norm), norm, x)

  def linear(d_z):
    return {'kernel': einsum('CTD,CTF->DF', y, d_z, preferred_element_type=acc),
            'bias': jnp.sum(d_z, axis=(0, 1), dtype=acc)}

  def back(name, d_z):
    return einsum('CTF,DF->CTD', d_z, mlp[name]['kernel'].astype(x.dtype),
                  preferred_element_type=acc)

  d_y = back('up', d_up) + back('gate', d_gate)
  d_norm, d_x = norm_vjp(d_y.astype(x.dtype))
  return (d_norm, {'up': linear(d_up), 'gate': linear(d_gate)}), d_x


def segment_sum(x: jax.Array, segments: jax.Array, num_segments: int) -> jax.Array:
  """x [C,T,F], segments [C,T] -> [C,S,F]; -1 belongs to no segment."""
  if num_segments == 1:
    return jnp.sum(jnp.where(segments[..., None] == 0, x, 0), axis=1, keepdims=True)
  return jnp.einsum('CTS,CTF->CSF', _one_hot(segments, num_segments, x.dtype), x,
                    precision=jax.lax.Precision.HIGHEST)


def segment_spread(x: jax.Array, segments: jax.Array) -> jax.Array:
  """The transpose of `segment_sum`: x [C,S,F], segments [C,T] -> [C,T,F]."""
  if x.shape[1] == 1:
    return jnp.where(segments[..., None] == 0, x, 0)
  return jnp.einsum('CTS,CSF->CTF', _one_hot(segments, x.shape[1], x.dtype), x,
                    precision=jax.lax.Precision.HIGHEST)


def clean(x: jax.Array, segments: jax.Array) -> jax.Array:
  """x [C,T,D] with zeros for tokens of no segment: no weight times NaN is NaN."""
  return jnp.where(segments[..., None] >= 0, x, 0)


def _clean_norm(norm, x, segments):
  return layer_norm(clean(x, segments), **norm)


def _one_hot(segments, num_segments, dtype):
  return jax.nn.one_hot(segments, num_segments, dtype=dtype)


def over_blocks(step: Callable, carry: Any, chunks: Any, token_block: int
                ) -> tuple[Any, Any]:
  """lax.scan of `step` over groups of chunks; the results lie as `chunks` do.

  A single group is called directly. When the groups do not divide C, zero chunks
  fill the last one: they belong to no segment or have no cotangent.
  """
  count, length = jax.tree.leaves(chunks)[0].shape[:2]
  groups = -(-count * length // max(token_block, length))
  size = -(-count // groups)
  if groups == 1:
    return step(carry, chunks)

  def split(x):
    fill = [(0, groups * size - count)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, fill).reshape(groups, size, *x.shape[1:])

  def join(x):
    return x.reshape(groups * size, *x.shape[2:])[:count]

  carry, out = jax.lax.scan(step, carry, jax.tree.map(split, chunks))
  return carry, jax.tree.map(join, out)


def add(x: Any, y: Any) -> Any:
  """Sum of two trees, in the first one's dtypes."""
  return jax.tree.map(lambda a, b: a + b.astype(a.dtype), x, y)


def like(x: Any, target: Any) -> Any:
  """The tree `x` in the dtypes of `target`."""
  return jax.tree.map(lambda a, b: a.astype(b.dtype), x, target)


def wide_zeros(params: Any) -> Any:
  """Zeros to accumulate gradients of `params` in."""
  return jax.tree.map(
      lambda p: jnp.zeros(p.shape, accumulator(p.dtype)), params)
