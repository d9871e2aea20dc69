"""The head's attention as a two-layer MLP whose nonlinearity is a grouped softmax.

Keys and values depend on parameters alone, so per head n

  softmax(LN(x) Wq_n K_n^T / sqrt(H)) V_n Wo_n = softmax(LN(x) M_n) U_n

with M_n = Wq_n K_n^T / sqrt(H) [D,R] and U_n = V_n Wo_n [R,D]. The inner width
N*H (32,768 in the released head) disappears from the work per token: 302M
multiply-adds become 33.5M.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxembed import precision
from jaxembed.functional import accumulator, layer_norm
from jaxembed.mesh import axes_of, reshard, spec
from jaxembed.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Folded:
  """The head without its inner width; a pytree, differentiable.

  The unfolded parameters stay the truth: checkpoints and export never see this.
  """

  norm: dict  # {scale, bias} [D]
  w_in: jax.Array  # [D,N,R], M
  w_out: jax.Array  # [N,R,D], U
  mlp_norm: dict  # {scale, bias} [D]
  mlp: dict  # up, gate {kernel [D,F], bias [F]}, down {kernel [F,D], bias [D]}


def fold_latents(params: Params, dtype: Any = None) -> Folded:
  """Folds the latents into the projections: exact, differentiable.

  Once per step in training (gradients reach every original parameter), once at
  load for inference. Computed in the parameters' dtype with float32 sums, stored
  in `dtype`, that of the token states (default: the parameters' own). Float32
  parameters halve the error that bfloat16 keys and values would bring.

  Under an Explicit mesh each device folds its own piece: R over the mesh axes
  that split latents' rows, D and N over those that split the kernels. The pieces
  of K and V are summed over the axes of D (all-reduce of [R,N,H]).
  """
  q, out = (jnp.asarray(params[name]['kernel']) for name in ('q', 'out'))
  own = q.dtype
  acc = accumulator(own)
  d_axis, n_axis, _ = axes_of(q)
  r_axis = axes_of(jnp.asarray(params['latents']))[0]
  # Rounded to `dtype` in the end: one pass is then enough.
  exact = precision.of_dtype(dtype or own)

  def product(expr, x, y, axes, dtype=own, scale=1.0):
    wide = jnp.einsum(expr, x, y, preferred_element_type=acc, precision=exact,
                      out_sharding=spec(*axes))
    return (wide * scale).astype(dtype)

  context = _context(params, own, r_axis, d_axis)
  axes = (r_axis, n_axis, None)
  key, value = (
      product('RD,DNH->RNH', context, jnp.asarray(params[name]['kernel']), axes)
      for name in ('k', 'v'))
  dtype, scale = dtype or own, q.shape[-1] ** -0.5
  return Folded(
      norm=params['norm'],
      w_in=product('DNH,RNH->DNR', q, key, (d_axis, n_axis, r_axis), dtype, scale),
      w_out=product('RNH,NHD->NRD', value, out, (n_axis, r_axis, d_axis), dtype),
      mlp_norm=params['mlp_norm'],
      mlp=params['mlp'])


def _context(params, dtype, r_axis, d_axis):
  """The normalised latents, split as the kernels they meet. -> [R,D]."""
  latents = reshard(jnp.asarray(params['latents']).astype(dtype), r_axis, None)
  norm = {k: jnp.asarray(v) for k, v in params['norm_context'].items()}
  return reshard(layer_norm(latents, **norm), r_axis, d_axis)
