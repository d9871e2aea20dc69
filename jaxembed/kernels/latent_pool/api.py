"""Latent-attention pooling of token states, by the implementation that is asked for.

The head is exactly the published one (reference.py), computed by two identities:
the latents are folded into the projections (fold.py), and the mean, being linear,
is taken before the down-projection, which then runs once per text:

  mean_t(h_t + W2 g_t + b2) = mean_t(h_t) + W2 mean_t(g_t) + b2

Arrays are local: under a mesh, call from inside shard_map.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from jaxembed.functional import accumulator
from jaxembed.kernels import choices, dispatch
from jaxembed.kernels.latent_pool import blockwise, gpu, recompute, reference, tpu
from jaxembed.kernels.latent_pool.fold import Folded, fold_latents
from jaxembed.types import Array, Params

# Tokens in a chunk. Long rows are cut: the partial sums of a chunk are as wide
# as the feed-forward, so that shorter chunks would cost memory.
_CHUNK = 512
# Tokens of a row of several texts, below which the kernels' steps are not full.
_LEAST_PACKED = 256
_DEVICES = {'tpu': tpu, 'gpu': gpu}


def latent_pool(params: Params | Folded, hidden: Array, pool: Array, *,
                impl: str = 'auto', token_block: int = 0, axis: str | None = None
                ) -> jax.Array:
  """Latent-attention pooling: the head, then the mean over kept tokens, [B,D].

  The vectors are not normalised.

  Args:
    params: the dict of pooling.latent_attention, or `Folded` (of fold_latents).
    hidden: [B,T,D] token states; their dtype is the one products are computed in.
      Norms, softmax, GELU and sums are float32 (float64 for float64 states).
    pool: [B,T] bool, tokens that count.
    impl: 'auto' or one of dispatch.IMPLS.
    token_block: tokens worked on at a time; 0: see blockwise.default_block.
    axis: mesh axis over which heads and feed-forward channels of `params` are
      split; their sums over it are taken here.

  Returns [B,D] float32 (float64 for float64 states). A row that keeps no token
  gives the zero vector and takes no gradient. Tokens that are not kept have no
  influence, be they NaN. A NaN that is kept is an error where values can be seen;
  under jit it makes its own row NaN, and no other.

  Raises ValueError on shapes, types or values that do not fit, and
  dispatch.Unsupported if a named impl cannot run here.
  """
  _check(params, hidden, pool, 'pool')
  if pool.dtype != bool:
    raise ValueError(f'pool has dtype {pool.dtype}, it must be bool; '
                     'pass pool == 1 if it holds zeros and ones')
  segments = jnp.where(pool, 0, -1)
  out = _pool(params, hidden, segments, 1, impl, token_block, axis)
  return out[:, 0]


def latent_pool_packed(params: Params | Folded, hidden: Array, segments: Array,
                       num_segments: int, *, impl: str = 'auto', token_block: int = 0,
                       axis: str | None = None) -> jax.Array:
  """As `latent_pool` when a row holds several texts, in any order.

  hidden [B,T,D], segments [B,T] int: which of the row's S = num_segments texts a
  token counts for; negative: none. -> [B,S,D], zeros for a text without tokens.
  A number beyond S is an error where values can be seen; under jit it counts for
  no text.
  """
  _check(params, hidden, segments, 'segments')
  if not jnp.issubdtype(segments.dtype, jnp.integer):
    raise ValueError(f'segments has dtype {segments.dtype}, it must be an integer')
  if num_segments < 1:
    raise ValueError(f'num_segments is {num_segments}, it must be at least 1')
  if _visible(segments) and (top := np.asarray(segments).max()) >= num_segments:
    raise ValueError(
        f'segments holds {top}, but num_segments is {num_segments}; '
        f'number the texts of a row from 0 to {num_segments - 1}')
  return _pool(params, hidden, segments.astype(jnp.int32), num_segments, impl,
               token_block, axis)


def _pool(params, hidden, segments, num_segments, impl, token_block, axis):
  """Dispatch, after the checks. -> [B,S,D]."""
  impl = dispatch.check_impl(impl)
  if impl == 'auto':
    impl = _pick(params, hidden, num_segments)
  kept = (segments >= 0) & (segments < num_segments)
  segments = jnp.where(kept, segments, -1)
  if impl == 'reference':
    if isinstance(params, Folded) or axis is not None:
      raise dispatch.Unsupported(
          'latent_pool reference takes whole, unfolded parameters; '
          "use impl='blockwise'")
    return reference.latent_pool_packed(params, hidden, segments, num_segments)
  folded = params
  if not isinstance(params, Folded):
    folded = fold_latents(params, hidden.dtype)
  geglu_sums = _sums_of(impl, folded, hidden.dtype)
  token_block = token_block or blockwise.default_block(segments.size)
  return folded_pool(folded, hidden, segments, num_segments, geglu_sums, token_block,
                     axis)


def _pick(params, hidden, num_segments) -> str:
  """What kernels.choices has for these states, if it tiles their widths."""
  rows, length, width = hidden.shape
  found = choices.choose('latent_pool', rows=rows * length, width=width,
                         dtype=hidden.dtype, chip=choices.chip()).impl
  if found not in _DEVICES:
    return found
  if num_segments > 1 and length < _LEAST_PACKED:
    return 'blockwise'
  mlp = params.mlp if isinstance(params, Folded) else params['mlp']
  try:
    _DEVICES[found].check(*mlp['up']['kernel'].shape, hidden.dtype)
  except dispatch.Unsupported:
    return 'blockwise'
  return found


def _sums_of(impl, folded, dtype) -> Callable[..., Any]:
  """The `geglu_sums` of a named implementation, or Unsupported."""
  if impl == 'blockwise':
    return blockwise.geglu_sums
  if impl != dispatch.platform():
    raise dispatch.Unsupported(
        f'latent_pool {impl} runs on a {impl}, this is a {dispatch.platform()}; '
        "use impl='blockwise'")
  _DEVICES[impl].check(*folded.mlp['up']['kernel'].shape, dtype)
  if impl == 'tpu':
    return functools.partial(tpu.geglu_sums, False)
  return functools.partial(recompute.geglu_sums, gpu.kernel())


def folded_pool(folded: Folded, hidden: Array, segments: Array, num_segments: int,
                geglu_sums: Callable[..., jax.Array], token_block: int,
                axis: str | None = None) -> jax.Array:
  """The head by a given `geglu_sums`, that of blockwise or one like it.

  hidden [B,T,D], segments [B,T] in [-1, S) -> [B,S,D] float32.
  """
  acc = accumulator(hidden.dtype)
  rows = len(hidden)
  count = jnp.sum(jax.nn.one_hot(segments, num_segments, dtype=acc), axis=1)
  x, segments = _chunks(hidden, 0), _chunks(segments, -1)
  pieces = len(x) // rows
  cast = [folded.w_in.astype(x.dtype), folded.w_out.astype(x.dtype)]
  attended = blockwise.attend(token_block, folded.norm, *cast, x, segments)
  x = blockwise.clean(x, segments) + _psum(attended, axis)
  up_gate = {name: folded.mlp[name] for name in ('up', 'gate')}
  inner = geglu_sums(token_block, num_segments, pieces, folded.mlp_norm, up_gate, x,
                     segments)
  residual = blockwise.of_rows(
      blockwise.segment_sum(x.astype(acc), segments, num_segments), pieces)

  def mean(sums):  # [B,S,F]
    return sums / jnp.maximum(count, 1)[..., None]

  down = folded.mlp['down']
  out = _psum(_matmul(mean(inner), down['kernel'].astype(hidden.dtype)), axis)
  bias = jnp.where(count[..., None] > 0, down['bias'].astype(acc), 0)
  return mean(residual) + out + bias


def _matmul(x, kernel):
  """x [B,S,F] float32 times kernel [F,D] of any dtype, to float32's precision.

  The mean over tokens has averaged the rounding of single tokens away; rounding
  it to bfloat16 would bring the error back. Two bfloat16 pieces hold 16 bits.
  """
  dtype = kernel.dtype

  def product(piece):
    return jnp.einsum('BSF,FD->BSD', piece, kernel, preferred_element_type=x.dtype,
                      precision=jax.lax.Precision.HIGHEST)

  if dtype == x.dtype:
    return product(x)
  kind = jnp.finfo(dtype)
  # Not a cast there and back, which the compiler may w_out out.
  high = jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
  return product(high.astype(dtype)) + product((x - high).astype(dtype))


def _chunks(x, fill):
  """x [B,T,...] -> [C,t,...]: rows cut into equal chunks of at most _CHUNK."""
  rows, length = x.shape[:2]
  pieces = -(-length // _CHUNK)
  size = -(-length // pieces)
  pad = [(0, 0), (0, pieces * size - length)] + [(0, 0)] * (x.ndim - 2)
  x = jnp.pad(x, pad, constant_values=fill)
  return x.reshape(rows * pieces, size, *x.shape[2:])


def _psum(x: Any, axis: str | None) -> Any:
  return x if axis is None else jax.lax.psum(x, axis)  # all-reduce over heads, F


def _visible(x) -> bool:
  return not isinstance(x, Tracer)


def _check(params, hidden, marks, name):
  if jnp.ndim(hidden) != 3:
    raise ValueError(f'hidden has shape {jnp.shape(hidden)}, it must be [B,T,D]')
  if jnp.shape(marks) != hidden.shape[:2]:
    raise ValueError(f'{name} has shape {jnp.shape(marks)}, hidden '
                     f'{hidden.shape}; {name} must be {hidden.shape[:2]}')
  if not jnp.issubdtype(hidden.dtype, jnp.floating):
    raise ValueError(f'hidden has dtype {hidden.dtype}, it must be floating')
  norm = params.norm if isinstance(params, Folded) else params['norm']
  width = norm['scale'].shape[0]
  if hidden.shape[-1] != width:
    raise ValueError(f'hidden is {hidden.shape[-1]} wide, but the head is {width} '
                     'wide; the head belongs to another backbone')
  if not (_visible(hidden) and _visible(marks)):
    return
  with jax.ensure_compile_time_eval():  # not a part of any program being traced
    finite = np.asarray(jnp.isfinite(hidden).all(-1))
  kept = np.asarray(marks) if marks.dtype == bool else np.asarray(marks) >= 0
  bad = ~finite & kept
  if bad.any():
    row, token = np.argwhere(bad)[0]
    raise ValueError(f'hidden[{row}, {token}] is not finite and is pooled '
                     f'({bad.sum()} such tokens); look for what made it in the '
                     'backbone, or w_out it out of the mask')
