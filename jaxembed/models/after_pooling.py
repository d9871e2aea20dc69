"""Steps between pooling and the finished vector: projections and norms.

Parameters of step N lie under dense/N: kernel [D,E], bias [E] and, of a residual
between different widths, residual [D,E]; or scale and bias [D] of a norm.
"""

import jax
from jax import Array
import jax.numpy as jnp

from jaxembed.config import DenseConfig
from jaxembed.functional import ACTIVATIONS, layer_norm
from jaxembed.mesh import BATCH, along_last, reshard, spec
from jaxembed.types import Params

# What torch.nn.RReLU takes outside training: the middle of its default slopes.
_RRELU = (1 / 8 + 1 / 3) / 2
# Named as torch.nn has them with their default settings.
_ACTIVATIONS = ACTIVATIONS | {
    'sigmoid': jax.nn.sigmoid, 'leaky_relu': jax.nn.leaky_relu, 'elu': jax.nn.elu,
    'selu': jax.nn.selu, 'softplus': jax.nn.softplus, 'softsign': jax.nn.soft_sign,
    'mish': jax.nn.mish, 'celu': jax.nn.celu, 'relu6': jax.nn.relu6,
    'hard_sigmoid': jax.nn.hard_sigmoid, 'hard_silu': jax.nn.hard_silu,
    'hard_tanh': jax.nn.hard_tanh, 'log_sigmoid': jax.nn.log_sigmoid,
    'rrelu': lambda x: jnp.where(x >= 0, x, _RRELU * x),
    'tanh_shrink': lambda x: x - jnp.tanh(x),
    'soft_shrink': lambda x: x - jnp.clip(x, -0.5, 0.5),
    'hard_shrink': lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0.0),
    'softmax': jax.nn.softmax, 'softmin': lambda x: jax.nn.softmax(-x),
    'log_softmax': jax.nn.log_softmax}
# Of torch.nn.LayerNorm.
_EPS = 1e-5


def init(cfg: DenseConfig, width: int, key: Array) -> Params:
  """Parameters of a new step for vectors of `width`."""
  if cfg.kind == 'layer_norm':
    return {'scale': jnp.ones(width), 'bias': jnp.zeros(width)}
  p = {'kernel': jax.random.normal(key, (width, cfg.features)) * width**-0.5}
  if cfg.bias:
    p['bias'] = jnp.zeros(cfg.features)
  if cfg.residual and width != cfg.features:
    key = jax.random.fold_in(key, 1)
    p['residual'] = jax.random.normal(key, (width, cfg.features)) * width**-0.5
  return p


def apply(p: Params, cfg: DenseConfig, v: jax.Array) -> jax.Array:
  """v [B,D] -> [B,E] float32."""
  if cfg.kind == 'layer_norm':
    scale, bias = (reshard(p[name], None).astype(jnp.float32)
                   for name in ('scale', 'bias'))
    return layer_norm(v, scale, bias, _EPS)
  out = _project(p['kernel'], v)
  if cfg.bias:
    out += along_last(reshard(p['bias'], None).astype(jnp.float32), out)
  out = _ACTIVATIONS[cfg.activation](out)
  if cfg.residual:
    out += _project(p['residual'], v) if 'residual' in p else v
  return out


def _project(kernel: Array, v: Array) -> jax.Array:
  """kernel [D,E], v [B,D] -> [B,E] float32."""
  kernel = reshard(kernel, None, None).astype(jnp.float32)
  return jnp.einsum('BD,DE->BE', v, kernel, out_sharding=spec(BATCH, None))
