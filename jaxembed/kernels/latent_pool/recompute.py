"""`geglu_sums` over a device kernel that never writes the pre-activations.

Nothing but the states is kept for the backward pass: the kernel computes the
up-projection a second time (one product more, four instead of three) and writes
the gradient of the pre-activations for one block of tokens; library products
turn it into the gradients of the kernels and the states.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax

from jaxembed.kernels.latent_pool import blockwise, reference


class Kernel(NamedTuple):
  """A device's two programs. mlp {up, gate}, y [C,T,D] normalised states.

  sums(mlp, y, segments [C,T], num_segments) -> [C,S,F] float32
  grad(mlp, y, segments [C,T], d_sums [C,S,F]) -> d_up, d_gate, both [C,T,F]
  """

  sums: Callable
  grad: Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def geglu_sums(kernel: Kernel, token_block, num_segments, norm, mlp, x, segments):
  """As blockwise.geglu_sums, by `kernel`. -> [C,S,F] float32."""
  y = reference.layer_norm(norm, x)
  return kernel.sums(mlp, y, segments, num_segments)


def _fwd(kernel, token_block, num_segments, norm, mlp, x, segments):
  sums = geglu_sums(kernel, token_block, num_segments, norm, mlp, x, segments)
  return sums, (norm, mlp, x, segments)


def _bwd(kernel, token_block, num_segments, residuals, d_sums):
  norm, mlp, x, segments = residuals

  def block(grads, blocks):
    x, segments, d_sums = blocks
    d_z = kernel.grad(mlp, reference.layer_norm(norm, x), segments, d_sums)
    new, d_x = blockwise.project_vjp(norm, mlp, x, *d_z)
    return blockwise.add(grads, new), d_x

  zeros = blockwise.wide_zeros((norm, mlp))
  grads, d_x = blockwise.over_blocks(
      block, zeros, (x, segments, d_sums), token_block)
  return *blockwise.like(grads, (norm, mlp)), d_x, None


geglu_sums.defvjp(_fwd, _bwd)
