"""Texts to vectors: parameters, token states, embeddings.

Parameters are a nested dict: 'backbone', 'pooling' (latent and layer attention) and
'dense' (projections after pooling). Every path is listed in sharding.RULES.
"""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxembed import precision, sharding
from jaxembed.config import DenseConfig, ModelConfig
from jaxembed.functional import ACTIVATIONS
from jaxembed.mesh import BATCH, along_last, reshard, spec
from jaxembed.models import lora
from jaxembed.models.transformer import Backbone
from jaxembed.pooling import latent_attention, layer_attention, pool as poolers
from jaxembed.types import Array, Params, Tokens

# Below the norm of any embedding that carries information; keeps the zero vector
# of an empty text zero. The value torch.nn.functional.normalize uses.
_NORM_EPS = 1e-12
# Of dense layers, named as torch.nn has them with their default settings.
_ACTIVATIONS = ACTIVATIONS | {
    'sigmoid': jax.nn.sigmoid, 'leaky_relu': jax.nn.leaky_relu, 'elu': jax.nn.elu,
    'selu': jax.nn.selu, 'softplus': jax.nn.softplus, 'softsign': jax.nn.soft_sign,
    'mish': jax.nn.mish}


def init_params(cfg: ModelConfig, key: Array, dtype=jnp.float32) -> Params:
  """Random parameters of `cfg`, sharded by sharding.RULES under a mesh.

  The tree is the one `convert.from_hf.load` returns for the same configuration.
  """
  make = functools.partial(_init, cfg, dtype=jnp.dtype(dtype))
  mesh = jax.sharding.get_abstract_mesh()
  if spec() is None:
    return jax.jit(make)(key)
  specs = sharding.param_specs(param_shapes(cfg, dtype))
  shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs,
                           is_leaf=lambda s: isinstance(s, jax.P))
  return jax.jit(make, out_shardings=shardings)(key)


def param_shapes(cfg: ModelConfig, dtype=jnp.float32) -> Params:
  """The tree of `init_params` as jax.ShapeDtypeStruct; computes nothing."""
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    return jax.eval_shape(
        functools.partial(_init, cfg, dtype=jnp.dtype(dtype)), jax.random.key(0))


def hidden_states(params: Params, cfg: ModelConfig, tokens: Tokens, *,
                  attention: str | None = None, prefix: Array | None = None,
                  key: Array | None = None) -> Array:
  """Token states after the final norm.  Tokens [B,T] -> [B,T,D] cfg.dtype.

  Args:
    params: tree of `init_params`.
    cfg: static.
    tokens: padding on either side; states of padding tokens mean nothing.
    attention: 'causal', 'bidirectional' or 'prefix'; None: cfg.attention.
    prefix: [B] int32, for 'prefix': how many tokens of each row (from its first
      text token) every token sees; the others see only what precedes them.
    key: turns dropout on (that of LoRA).
  """
  with precision.scope(cfg):
    return _backbone(params, cfg, tokens, attention, prefix, key)[0]


def encode(params: Params, cfg: ModelConfig, tokens: Tokens, *,
           attention: str | None = None, prefix: Array | None = None,
           key: Array | None = None) -> Array:
  """One vector per text.  Tokens [B,T] -> [B,E] float32, of length 1 when
  cfg.normalize; [B*S,E] where rows hold S texts each.

  Pooling and normalisation are float32. A text whose pool mask is empty (its
  instruction alone filled max_length) is pooled over its attention mask; a text
  without any token gives zeros. Texts of one row do not see each other. Arguments
  as in `hidden_states`.
  """
  with precision.scope(cfg):
    return _encode(params, cfg, tokens, attention, prefix, key)


def _encode(params, cfg: ModelConfig, tokens: Tokens, attention, prefix, key):
  of_text, text = _pool_masks(tokens)
  tokens = dataclasses.replace(tokens, pool=of_text.any(1))
  x, kept = _backbone(params, cfg, tokens, attention, prefix, key)
  if tokens.segment is None:
    v = _pool(params, cfg, x, kept, reshard(tokens.pool, BATCH, None),
              reshard(text.any(1), BATCH, None))
  else:
    v = _pool_packed(params, cfg, x, reshard(of_text, BATCH, None, None),
                     reshard(text, BATCH, None, None))
    v = lax.reshape(v, (v.shape[0] * v.shape[1], v.shape[2]),
                    out_sharding=spec(BATCH, None))
  for i, layer in enumerate(cfg.dense):
    v = _dense(params['dense'][str(i)], layer, unit(v) if layer.normalize_input else v)
  return unit(v) if cfg.normalize else v


def _backbone(params, cfg: ModelConfig, tokens: Tokens, attention, prefix, key):
  """(states [B,T,D], vectors of the layers [L,B,D] or None)."""
  mode = attention or cfg.attention
  if mode not in ('causal', 'bidirectional', 'prefix'):
    raise ValueError(f'attention is {mode!r}; choose causal, bidirectional or '
                     'prefix')
  if (mode == 'prefix') != (prefix is not None):
    raise ValueError(f'attention {mode!r} and prefix '
                     f'{"absent" if prefix is None else "given"}: the prefix '
                     "lengths belong to attention 'prefix' and only to it")
  if tokens.segment is not None:
    check_packable(cfg, mode, tokens.ids.shape[1])
  tokens = jax.tree.map(lambda x: reshard(x, BATCH, None), tokens)
  if prefix is not None:
    prefix = reshard(prefix, BATCH)
  rngs = {} if key is None else {'dropout': key}
  return Backbone(cfg).apply({'params': params['backbone']}, tokens, mode, prefix,
                             rngs=rngs)


def check_packable(cfg: ModelConfig, mode: str, width: int):
  """Raises ValueError if texts cannot share rows of `width` tokens."""
  scaling = cfg.backbone.rope_scaling
  unable = {"attention 'prefix'": mode == 'prefix',
            'layer_attention pooling': bool(cfg.pooling.per_layer),
            'a prepended state': cfg.prepend is not None,
            'LongRoPE\'s choice by length': scaling is not None and (
                scaling.kind == 'longrope' and width > scaling.original_positions)}
  for what, here in unable.items():
    if here:
      raise ValueError(f'{what} holds for a whole row, so texts cannot share rows; '
                       'give each its own (DataConfig.pack=0)')


def _pool_masks(tokens: Tokens) -> tuple[Array, Array]:
  """tokens.pool inside each text (the whole text where that is empty), and each
  text: both [B,S,T]."""
  text = jnp.asarray(tokens.mask)[:, None]
  if tokens.segment is not None:
    number = jnp.arange(tokens.slots, dtype=jnp.int32)[:, None]
    text = text & (jnp.asarray(tokens.segment)[:, None] == number)
  pool = text & jnp.asarray(tokens.pool)[:, None]
  return jnp.where(pool.any(2, keepdims=True), pool, text), text


def _pool(params, cfg: ModelConfig, x: Array, kept: Array | None, pool: Array,
          text: Array) -> Array:
  """x [B,T,D], kept [L,B,D] or None; pool, text [B,T] -> [B,E] float32."""
  kind = cfg.pooling.kind
  if kind == 'latent_attention':
    return latent_attention.apply(params['pooling'], cfg.pooling, x, pool)
  if kind == 'layer_attention':
    return layer_attention.apply(params['pooling'], cfg.pooling, x, kept, pool)
  return poolers.apply(cfg.pooling.modes, x, pool, text)


def _pool_packed(params, cfg: ModelConfig, x: Array, of_text: Array, text: Array):
  """x [B,T,D]; of_text, text [B,S,T] -> [B,S,E] float32."""
  kind = cfg.pooling.kind
  if kind == 'latent_attention':
    number = jnp.arange(of_text.shape[1], dtype=jnp.int32)[:, None]
    segment = jnp.where(of_text, number, -1).max(1)
    return latent_attention.apply_packed(
        params['pooling'], cfg.pooling, x, segment, of_text.shape[1])
  return jax.vmap(functools.partial(poolers.apply, cfg.pooling.modes),
                  (None, 1, 1), 1)(x, of_text, text)


def unit(v: Array) -> Array:
  """v / |v| along the last axis; zero stays zero.  [B,E] -> [B,E]."""
  square = jnp.square(v).sum(-1, keepdims=True)
  return v * jax.lax.rsqrt(jnp.maximum(square, _NORM_EPS**2))


def _dense(p: Params, cfg: DenseConfig, v: Array) -> Array:
  """v [B,D] -> [B,E] float32."""
  out = _project(p['kernel'], v)
  if cfg.bias:
    out += along_last(reshard(p['bias'], None).astype(jnp.float32), out)
  out = _ACTIVATIONS[cfg.activation](out)
  if cfg.residual:
    out += _project(p['residual'], v) if 'residual' in p else v
  return out


def _project(kernel: Array, v: Array) -> Array:
  """kernel [D,E], v [B,D] -> [B,E] float32."""
  kernel = reshard(kernel, None, None).astype(jnp.float32)
  return jnp.einsum('BD,DE->BE', v, kernel, out_sharding=spec(BATCH, None))


def _init(cfg: ModelConfig, key: Array, dtype) -> Params:
  keys = jax.random.split(key, 4)
  rows = sharding.batch_devices()
  flags = jnp.ones((rows, 1), bool)
  tokens = Tokens(ids=jnp.zeros((rows, 1), jnp.int32), mask=flags, pool=flags)
  tokens = jax.tree.map(lambda x: reshard(x, BATCH, None), tokens)
  plain = Backbone(dataclasses.replace(cfg, lora=None))
  params = {'backbone': plain.init(keys[0], tokens, 'bidirectional', None)['params']}
  if cfg.pooling.kind == 'latent_attention':
    params['pooling'] = latent_attention.init(cfg.pooling, cfg.backbone.dim, keys[1])
  elif cfg.pooling.kind == 'layer_attention':
    params['pooling'] = layer_attention.init(
        cfg.pooling, cfg.backbone.dim, cfg.backbone.num_layers, keys[1])
  for i, (layer, width, k) in enumerate(
      zip(cfg.dense, cfg.widths, jax.random.split(keys[2], max(len(cfg.dense), 1)))):
    p = {'kernel': jax.random.normal(k, (width, layer.features)) * width**-0.5}
    if layer.bias:
      p['bias'] = jnp.zeros(layer.features)
    if layer.residual and width != layer.features:
      k = jax.random.fold_in(k, 1)
      p['residual'] = jax.random.normal(k, (width, layer.features)) * width**-0.5
    params.setdefault('dense', {})[str(i)] = p
  if cfg.lora is not None:
    params = lora.add(params, cfg.lora, keys[3])
  return jax.tree.map(lambda x: x.astype(dtype), params)
