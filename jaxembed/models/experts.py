"""Mixture of experts: a feed-forward of which each token takes a few experts alone.

Shazeer et al. 2017 (arXiv 1701.06538); the softmax over all experts, of which the
largest are used, is Mixtral's (Jiang et al. 2024, arXiv 2401.04088) and Qwen3's. No
token is ever dropped: a text's vector does not depend on its batch.
"""

import functools

from flax import linen as nn
import jax
from jax import Array, lax
import jax.numpy as jnp

from jaxembed.config import BackboneConfig
from jaxembed.functional import ACTIVATIONS
from jaxembed.kernels import dispatch
from jaxembed.mesh import BATCH, explicit, reshard, tokens_axis
from jaxembed.models.layers import INIT


class Experts(nn.Module):
  """The sum of the experts that a router chooses for each token.  [B,T,D] -> [B,T,D].

  Parameters: router_kernel [D,E]; gate_kernel, up_kernel [E,D,F]; down_kernel [E,F,D].
  Each expert is split over the mesh as any feed-forward is: F over 'tensor', D over
  'fsdp', whose pieces are gathered here.
  """

  cfg: BackboneConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    cfg = self.cfg
    count, dim, width = cfg.experts, cfg.dim, cfg.ff_dim
    router = self.param('router_kernel', INIT, (dim, count))
    gate = self.param('gate_kernel', INIT, (count, dim, width))
    up = self.param('up_kernel', INIT, (count, dim, width))
    down = self.param('down_kernel', INIT, (count, width, dim))
    kernels = [reshard(router, None, None), reshard(gate, None, None, 'tensor'),
               reshard(up, None, None, 'tensor'), reshard(down, None, 'tensor', None)]
    kernels = [kernel.astype(x.dtype) for kernel in kernels]
    run = functools.partial(_mix, cfg=cfg, mix=choose(dispatch.platform()))
    if not explicit():
      return run(x, *kernels)[0]
    tokens = jax.P(BATCH, tokens_axis(), None)
    parts = jax.shard_map(
        run, in_specs=(tokens, jax.P(), *(jax.P(None, None, 'tensor'),) * 2,
                       jax.P(None, 'tensor', None)),
        out_specs=jax.P('tensor', *tokens), check_vma=False)(x, *kernels)
    return parts.sum(0)  # all-reduce over tensor


def choose(platform: str):
  """How experts are computed: one after another over all tokens where products of
  ragged groups are not native (CPU), else each over its own tokens."""
  return in_turn if platform == 'cpu' else by_group


def _mix(x: Array, router: Array, gate: Array, up: Array, down: Array, *,
         cfg: BackboneConfig, mix) -> Array:
  """x [B,T,D] of this device, and its slice of F.  -> [1,B,T,D], a term of the sum."""
  tokens = x.reshape(-1, x.shape[-1])
  logits = (tokens @ router).astype(jnp.float32)
  share, chosen = lax.top_k(jax.nn.softmax(logits), cfg.experts_used)
  if cfg.experts_normed:
    share /= share.sum(-1, keepdims=True)
  out = mix(tokens, share, chosen, gate, up, down, ACTIVATIONS[cfg.activation])
  return out.astype(x.dtype).reshape(1, *x.shape)


def in_turn(x: Array, share: Array, chosen: Array, gate: Array, up: Array, down: Array,
            act) -> jax.Array:
  """Every expert on every token, times its share, which is mostly 0.

  x [n,D], share and chosen [n,K], kernels as in Experts.  -> [n,D] float32.
  """
  count = len(gate)
  shares = jnp.zeros((len(x), count)).at[jnp.arange(len(x))[:, None], chosen].add(share)

  def add(total, expert):
    gate, up, down, share = expert
    y = (act(x @ gate) * (x @ up)) @ down
    return total + share[:, None] * y, None

  return lax.scan(add, jnp.zeros(x.shape), (gate, up, down, shares.T))[0]


def by_group(x: Array, share: Array, chosen: Array, gate: Array, up: Array, down: Array,
             act) -> jax.Array:
  """Every expert on the tokens that chose it: tokens in the order of their experts,
  and products of ragged groups.  As `in_turn`."""
  used = chosen.shape[1]
  order = jnp.argsort(chosen.reshape(-1), stable=True)
  sizes = jnp.bincount(chosen.reshape(-1), length=len(gate)).astype(jnp.int32)
  token = order // used
  rows = x[token]
  hidden = act(lax.ragged_dot(rows, gate, sizes)) * lax.ragged_dot(rows, up, sizes)
  y = lax.ragged_dot(hidden, down, sizes) * share.reshape(-1)[order][:, None]
  return jnp.zeros(x.shape).at[token].add(y)
