"""Gradient of `geglu_sums` by recomputation, for kernels that write no activations.

Nothing but the states is kept for the backward pass: the kernel computes the
up-projection a second time (one product more, four instead of three) and writes
the gradient of the pre-activations for one block of tokens; library products
turn it into the gradients of the kernels and the states.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxembed.functional import layer_norm
from jaxembed.kernels.latent_pool import blockwise
from jaxembed.types import Params


class Kernel(NamedTuple):
  """A device's two programs. mlp {up, gate}, y [C,T,D] normalised states.

  sums(mlp, y, segments [C,T], num_segments, pieces) -> [C/pieces,S,F] float32
  grad(mlp, y, segments [C,T], d_sums [C,S,F]) -> d_up, d_gate, both [C,T,F]
  """

  sums: Callable
  grad: Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def geglu_sums(kernel: Kernel, token_block: int, num_segments: int, pieces: int,
               norm: Params, mlp: Params, x: jax.Array, segments: jax.Array
               ) -> jax.Array:
  """As blockwise.geglu_sums, by `kernel`. -> [C/pieces,S,F] float32."""
  y = layer_norm(x, **norm)
  return kernel.sums(mlp, y, segments, num_segments, pieces)


def _fwd(kernel, token_block, num_segments, pieces, norm, mlp, x, segments):
  sums = geglu_sums(kernel, token_block, num_segments, pieces, norm, mlp, x, segments)
  return sums, (norm, mlp, x, segments)


def _bwd(kernel, token_block, num_segments, pieces, residuals, d_sums):
  norm, mlp, x, segments = residuals

  def block(grads, blocks):
    x, segments, row = blocks
    d_z = kernel.grad(mlp, layer_norm(x, **norm), segments, d_sums[row[:, 0]])
    new, d_x = blockwise.project_vjp(norm, mlp, x, *d_z)
    return blockwise.add(grads, new), d_x

  zeros = blockwise.wide_zeros((norm, mlp))
  grads, d_x = blockwise.over_blocks(
      block, zeros, (x, segments, blockwise.row_of_chunk(x, pieces)), token_block)
  return *blockwise.like(grads, (norm, mlp)), d_x, None


geglu_sums.defvjp(_fwd, _bwd)


def group(y: jax.Array, segments: jax.Array, num_segments: int, tokens: int,
          multiple: int) -> tuple[jax.Array, jax.Array, int]:
  """Chunks side by side, to fill a kernel's step of `tokens`.

  y [C,T,D] -> [G,k*t,D] with t = T rounded up to `multiple`, segments [C,T] ->
  [G,k*t]. A chunk's segments are numbered on from those of the chunk before it in
  the group. Also returns k*S, the number of sums a group has.
  """
  count, length, width = y.shape
  size = -(-length // multiple) * multiple
  per_group = min(max(tokens // size, 1), count)
  groups = -(-count // per_group)
  y = pad(pad(y, 1, size), 0, groups * per_group)
  segments = pad(pad(segments, 1, size, -1), 0, groups * per_group, -1)
  segments = segments.reshape(groups, per_group, size)
  first = jnp.arange(per_group, dtype=jnp.int32)[:, None] * num_segments
  segments = jnp.where(segments < 0, -1, segments + first)
  return (y.reshape(groups, per_group * size, width), segments.reshape(groups, -1),
          per_group * num_segments)


def pad(x: jax.Array, axis: int, size: int, fill: int = 0) -> jax.Array:
  """x with `axis` filled up to `size`."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths, constant_values=fill)
