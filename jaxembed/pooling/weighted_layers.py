"""Weighted mean of layers, pooled: WeightedLayerPooling of sentence-transformers.

There the states of layers start..L are averaged with trained weights, and then pooled.
The poolings that are offered are linear in the states, so the pooled vectors of the
layers are averaged instead: no [L,B,T,D] ever exists.

Paths under `pooling/`: layer_weights [L+1-start]
"""

from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxembed.config import PoolingConfig
from jaxembed.mesh import BATCH, reshard, spec
from jaxembed.pooling.head import Head, States, Tensor
from jaxembed.types import Params

KIND = 'weighted_layers'
# Poolings of a layer that are linear in its states.
POOLS = ('mean', 'cls', 'last', 'mean_sqrt')


def _init(cfg: PoolingConfig, dim: int, layers: int, key: Array) -> Params:
  del dim, key  # equal weights, as there
  return {'layer_weights': jnp.ones(count(cfg, layers))}


def count(cfg: PoolingConfig, layers: int) -> int:
  """How many layers count, of `layers`.

  Raises:
    ValueError: the first one is not among 1..layers, or the pooling is not linear.
  """
  given = {'start': 4, 'pool': 'mean'} | dict(cfg.options)
  start = int(str(given['start']))
  if not 1 <= start <= layers:
    raise ValueError(f'{KIND} pooling begins with layer {start}, of 1 to {layers}')
  if given['pool'] not in POOLS:
    raise ValueError(f'{KIND} pooling pools layers by {given["pool"]!r}; choose one of '
                     f'{", ".join(POOLS)}')
  return layers + 1 - start


def _apply(params: Params, cfg: PoolingConfig, states: States) -> Array:
  del cfg
  weights = reshard(params['layer_weights'], None).astype(jnp.float32)
  assert states.layers is not None
  vectors = jnp.einsum('L,LBD->BD', weights, states.layers[-len(weights):],
                       out_sharding=spec(BATCH, None))
  return (vectors / weights.sum())[:, None]


HEAD = Head(
    kind=KIND, apply=_apply, packs=False, init=_init,
    words='a weighted mean of its layers, each pooled by itself',
    options={'start': 4, 'pool': 'mean'},
    of_layer=lambda cfg: str(dict(cfg.options).get('pool', 'mean')),
    rules=((r'pooling/layer_weights$', P()),),
    tensors=lambda cfg: (Tensor('layer_weights', 'layer_weights'),))
