"""Layer-attention pooling: trainable latents attend to token or layer states.

The head of Tang & Yang 2024, "Pooling And Attention" (arXiv 2409.02727). Its five
designs are points of the configuration:

  1  kind='last', causal: the last token, no head
  2  reads='last_token', causal: the last token of the last layer
  3  reads='layers_last', causal: the last token of every layer
  4  reads='tokens', bidirectional: all tokens of the last layer
  5  reads='layers_mean', bidirectional: the mean of every layer's tokens

The roles are opposite to latent attention: here latents are queries, states are
keys and values. Padding is masked in design 4, where the authors' code is not.

Paths under `pooling/`:
  latents [R,D]                             queries, and the residual
  layer [L,D]                               added to each layer's state (3 and 5)
  norm/{scale,bias} [D]                     of the states
  norm_context/{scale,bias} [D]             of the latents
  q, k, v: kernel [D,N,H]   out/kernel [N,H,D]
  mlp_norm/{scale,bias}, mlp/{up,gate,down}/{kernel,bias}
"""

import math

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxembed.config import PoolingConfig
from jaxembed.functional import geglu, layer_norm
from jaxembed.mesh import BATCH, along_last, for_each_row, reshard, spec
from jaxembed.pooling import cross_attention, pool as poolers
from jaxembed.pooling.head import Head, States, Tensor, Twin
from jaxembed.types import Params

_MASKED = -1e30


def init(cfg: PoolingConfig, dim: int, layers: int, key: Array) -> Params:
  """A new head: latents N(0,1), layer vectors zero, matrices uniform in
  +-1/sqrt(inputs), biases zero."""
  heads, inner = cfg.heads, cfg.ff_mult * dim
  width = cfg.head_dim or dim
  keys = iter(jax.random.split(key, 8))

  def uniform(*shape, inputs=dim):
    bound = inputs**-0.5
    return jax.random.uniform(next(keys), shape, jnp.float32, -bound, bound)

  def norm():
    return {'scale': jnp.ones(dim), 'bias': jnp.zeros(dim)}

  def linear(rows, cols):
    return {'kernel': uniform(rows, cols, inputs=rows), 'bias': jnp.zeros(cols)}

  params = {
      'latents': jax.random.normal(next(keys), (cfg.latents, dim)),
      'norm': norm(), 'norm_context': norm(), 'mlp_norm': norm(),
      **{name: {'kernel': uniform(dim, heads, width)} for name in 'qkv'},
      'out': {'kernel': uniform(heads, width, dim, inputs=heads * width)},
      'mlp': {'up': linear(dim, inner), 'gate': linear(dim, inner),
              'down': linear(inner, dim)},
  }
  if per_layer(cfg):
    params['layer'] = jnp.zeros((layers, dim))
  return params


def per_layer(cfg: PoolingConfig) -> str:
  """What is kept of every layer: '' | last | mean."""
  return (cfg.reads.removeprefix('layers_') if cfg.reads.startswith('layers_') else '')


def apply(params: Params, cfg: PoolingConfig, hidden: Array, layers: Array | None,
          pool: Array) -> Array:
  """Pooled states, not normalised, in float32.

  Args:
    params: tree of `init`.
    cfg: says what is read.
    hidden: [B,T,D], of the last layer.
    layers: [L,B,D], one vector of each layer, when cfg reads layers.
    pool: [B,T], true where a token counts.

  Returns:
    [B,D] float32.
  """
  params = jax.tree.map(_whole, params)  # all-gather over fsdp and tensor
  if layers is not None:
    x = layers.transpose(1, 0, 2) + for_each_row(params['layer'], layers.shape[1])
    mask = jnp.ones((), bool)
  elif cfg.reads == 'last_token':
    x, mask = poolers.last(hidden, pool)[:, None], jnp.ones((), bool)
  else:
    x, mask = hidden.astype(jnp.float32), pool[:, None, None, :]
  return _head(params, x, mask)


def _head(p: Params, x: Array, mask: Array) -> Array:
  """x [B,S,D], mask broadcasts to [B,N,R,S] -> [B,D]."""
  latents = p['latents']
  x = layer_norm(x, **p['norm'])
  context = layer_norm(latents, **p['norm_context'])
  q = jnp.einsum('RD,DNH->RNH', context, p['q']['kernel'])
  batch = spec(BATCH, None, None, None)
  k = jnp.einsum('BSD,DNH->BSNH', x, p['k']['kernel'], out_sharding=batch)
  v = jnp.einsum('BSD,DNH->BSNH', x, p['v']['kernel'], out_sharding=batch)
  scores = jnp.einsum('RNH,BSNH->BNRS', q / math.sqrt(q.shape[-1]), k,
                      out_sharding=batch)
  weights = jax.nn.softmax(jnp.where(mask, scores, _MASKED), axis=-1)
  read = jnp.einsum('BNRS,BSNH->BRNH', weights, v, out_sharding=batch)
  states = spec(BATCH, None, None)
  y = jnp.einsum('BRNH,NHD->BRD', read, p['out']['kernel'], out_sharding=states)
  y = y + for_each_row(latents, y.shape[0])
  return (y + _feed_forward(p['mlp'], layer_norm(y, **p['mlp_norm']))).mean(axis=1)


def _feed_forward(p: Params, y: Array) -> Array:
  """GEGLU (Shazeer 2020, arXiv 2002.05202).  [B,R,D] -> [B,R,D]."""
  def linear(name, y):
    out = jnp.einsum('BRD,DF->BRF', y, p[name]['kernel'],
                     out_sharding=spec(BATCH, None, None))
    return out + along_last(p[name]['bias'], out)

  return linear('down', geglu(linear('up', y), linear('gate', y)))


def _whole(x: Array) -> Array:
  return reshard(x, *(None,) * x.ndim).astype(jnp.float32)


def _pool(params: Params, cfg: PoolingConfig, states: States) -> Array:
  pooled = apply(params, cfg, states.hidden, states.layers, states.segment == 0)
  return pooled[:, None]


HEAD = Head(
    kind='layer_attention', apply=_pool, packs=False, of_layer=per_layer, init=init,
    words='trained latents that attend to its tokens or layers',
    fields=('reads', *cross_attention.FIELDS),
    rules=((r'pooling/layer$', P()), *cross_attention.RULES),
    tensors=lambda cfg: (*((Tensor('layer', 'layer'),) if per_layer(cfg) else ()),
                         *cross_attention.TENSORS),
    twin=Twin('torch_layer_attention.py', 'layer_attention_pooling',
              'LayerAttentionPooling', (('reads', 'reads'), *cross_attention.KEYS)))
