"""Texts to vectors: parameters, token states, embeddings.

Parameters are a nested dict: 'backbone', 'pooling' (latent and layer attention) and
'dense' (projections after pooling). Every path is listed in sharding.RULES.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from jaxembed import precision, sharding
from jaxembed.config import ModelConfig
from jaxembed.mesh import BATCH, reshard, sequence_devices, spec
from jaxembed.models import after_pooling, clex, length, length_rule, lora
from jaxembed.models.transformer import Backbone
from jaxembed.pooling import heads
from jaxembed.pooling.head import States, Vectors
from jaxembed.types import Array, Params, Tokens

# Below the norm of any embedding that carries information; keeps the zero vector
# of an empty text zero. The value torch.nn.functional.normalize uses.
_NORM_EPS = 1e-12
# Folded into the key of a step for what length methods draw.
_POSITIONS = 2**31 - 2


def init_params(cfg: ModelConfig, key: Array, dtype: Any = jnp.float32) -> Params:
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


def param_shapes(cfg: ModelConfig, dtype: Any = jnp.float32) -> Params:
  """The tree of `init_params` as jax.ShapeDtypeStruct; computes nothing."""
  made_by = tuple(heads.HEADS[kind].init for kind in cfg.pooling.modes
                  if kind in heads.HEADS)
  leaves, tree = _shapes(cfg, jnp.dtype(dtype), made_by)
  return jax.tree.unflatten(tree, leaves)


@functools.lru_cache(maxsize=64)  # every reader of a model asks, most of them twice
def _shapes(cfg: ModelConfig, dtype, made_by):
  del made_by  # a head of the same name that is made otherwise has other parameters
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    # The key is made inside as well: the mesh in force may be of chips elsewhere.
    return jax.tree.flatten(jax.eval_shape(
        lambda: _init(cfg, jax.random.key(0), dtype=dtype)))


def hidden_states(params: Params, cfg: ModelConfig, tokens: Tokens, *,
                  attention: str | None = None, prefix: Array | None = None,
                  key: Array | None = None) -> jax.Array:
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
           key: Array | None = None) -> jax.Array:
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
  return _finished(params, cfg, _vectors(params, cfg, tokens, attention, prefix, key))


def _finished(params, cfg: ModelConfig, found: Any) -> jax.Array:
  """What follows the pooling: dense layers and length 1.  [B,S,D] -> [B*S,E]."""
  if isinstance(found, Vectors):
    raise ValueError(f'{cfg.pooling.kind} pooling gives several vectors for a text; '
                     'call encode_vectors')
  v = _texts_in_rows(found)
  for i, layer in enumerate(cfg.dense):
    v = unit(v) if layer.normalize_input else v
    v = after_pooling.apply(params['dense'][str(i)], layer, v)
  return unit(v) if cfg.normalize else v


def _backbone(params, cfg: ModelConfig, tokens: Tokens, attention, prefix, key
              ) -> tuple[Any, Any]:
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
    check_packable(cfg, mode)
  tokens = jax.tree.map(lambda x: reshard(x, BATCH, None), tokens)
  if prefix is not None:
    prefix = reshard(prefix, BATCH)
  rngs = {} if key is None else {'dropout': key}
  _check_width(cfg, tokens)
  layout = length_rule.layout(
      cfg, tokens, params=params.get('length'),
      key=None if key is None else jax.random.fold_in(key, _POSITIONS))
  return Backbone(cfg).apply({'params': params['backbone']}, tokens, mode, prefix,
                             layout, rngs=rngs)


def _check_width(cfg: ModelConfig, tokens: Tokens) -> None:
  """Raises ValueError on rows of more tokens than can be embedded or split."""
  width, table = tokens.ids.shape[1], length.longest(cfg)
  longest = width if tokens.segment is None else _longest_text(tokens)
  if table is not None and longest > table:
    raise ValueError(f'texts of {longest} tokens, but the model has embeddings of '
                     f'{table} positions; cut texts to {table} (max_length), or give '
                     'the model a length method (LengthConfig)')
  parts = sequence_devices()
  if width % parts:
    raise ValueError(f'rows of {width} tokens do not split over the {parts} devices of '
                     f"the mesh axis 'sequence'; pad them to a multiple of {parts}")


def _longest_text(tokens: Tokens) -> int:
  """Tokens of the longest text of packed rows; 0 under jit, where its end is unknown.
  """
  segment: Any = tokens.segment
  if isinstance(segment, Tracer):
    return 0
  segment = np.where(np.asarray(tokens.mask), np.asarray(segment), -1)
  ends = np.diff(segment, axis=1, prepend=-2, append=-2) != 0
  longest = 0
  for row, starts in zip(segment, ends):
    at = np.flatnonzero(starts)
    longest = max(longest, np.diff(at)[row[at[:-1]] >= 0].max(initial=0))
  return int(longest)


def check_packable(cfg: ModelConfig, mode: str) -> None:
  """Raises ValueError if texts cannot share rows."""
  drawn = cfg.length is not None and cfg.length.method in ('random_scale', 'clex')
  unable = {"attention 'prefix'": mode == 'prefix',
            f'{cfg.pooling.kind} pooling': not all(
                head.packs for head in heads.of(cfg.pooling)),
            'a prepended state': cfg.prepend is not None,
            'what a length method draws': drawn}
  for what, here in unable.items():
    if here:
      raise ValueError(f'{what} holds for a whole row, so texts cannot share rows; '
                       'give each its own (DataConfig.pack=0)')


def encode_vectors(params: Params, cfg: ModelConfig, tokens: Tokens, *,
                   key: Array | None = None) -> Vectors:
  """The vectors of a pooling that gives several for a text, as they are.

  Tokens [B,T] -> values [B*S,M,E] float32 and mask [B*S,M]; of other poolings M is 1.
  """
  with precision.scope(cfg):
    found = _vectors(params, cfg, tokens, None, None, key)
    if not isinstance(found, Vectors):
      found = Vectors(found[:, :, None], jnp.ones((*found.shape[:2], 1), bool))
    return Vectors(*map(_texts_in_rows, found))


def encode_spans(params: Params, cfg: ModelConfig, hidden: Array, row: Array,
                 first: Array, count: Array, width: int) -> jax.Array:
  """Vectors of parts of texts, from one pass over them (late chunking).

  Each span is pooled as if its states were those of a text; what follows the pooling
  follows here. Günther et al. 2024 (arXiv 2409.04701).

  Args:
    hidden: [B,T,D], of `hidden_states`; rows may hold several texts.
    row, first, count: [P] int32: the row of each span, its first column there, and how
      many tokens it has.
    width: the most tokens of a span.

  Returns:
    [P,E] float32, of length 1 when cfg.normalize; zeros where count is 0.

  Raises:
    ValueError: a pooling that reads more than the last states of a text's tokens.
  """
  check_spans(cfg)
  place = jnp.arange(width, dtype=jnp.int32)[None]
  inside = place < count[:, None]
  at = jnp.where(inside, first[:, None] + place, 0)
  hidden = jnp.asarray(reshard(hidden, None, None, None))
  at = reshard(at, BATCH, None)
  row = reshard(row, BATCH)[:, None] + 0 * at
  with precision.scope(cfg):
    states = hidden.at[row, at].get(out_sharding=spec(BATCH, None, None))
    segment = jnp.where(reshard(inside, BATCH, None), 0, -1)
    return _finished(params, cfg, heads.apply(
        params.get('pooling'), cfg.pooling,
        States(hidden=states, segment=segment, text=segment, slots=1)))


def check_spans(cfg: ModelConfig) -> None:
  """Raises ValueError if the model's pooling has no meaning for a part of a text."""
  for head in heads.of(cfg.pooling):
    if head.kind == 'cls' or head.of_layer(cfg.pooling):
      what = ('the first token of a text' if head.kind == 'cls' else
              'all layers of a whole text')
      raise ValueError(f'{head.kind} pooling reads {what}, which a part of it does not '
                       'have; encode the parts as texts of their own (encode)')


def _vectors(params, cfg: ModelConfig, tokens: Tokens, attention, prefix, key):
  """What the pooling makes of the token states: [B,S,E] float32, or Vectors."""
  segment, text = _segments(tokens)
  tokens = dataclasses.replace(tokens, pool=segment >= 0)
  x, layers = _backbone(params, cfg, tokens, attention, prefix, key)
  if not all(head.splits for head in heads.of(cfg.pooling)):
    x = reshard(x, BATCH, None, None)  # all-gather over sequence
  states = States(hidden=x, segment=reshard(segment, BATCH, None),
                  text=reshard(text, BATCH, None), slots=tokens.slots, layers=layers)
  return heads.apply(params.get('pooling'), cfg.pooling, states)


def _segments(tokens: Tokens) -> tuple[jax.Array, jax.Array]:
  """The text that each token counts for, and the one it belongs to; -1: none.

  Where no token of a text counts, all of them do.  Both [B,T] int32.
  """
  mask = jnp.asarray(tokens.mask)
  counts = mask & jnp.asarray(tokens.pool)
  if tokens.segment is None:
    text = jnp.where(mask, 0, -1)
    counts |= mask & ~counts.any(1, keepdims=True)
  else:
    text = jnp.where(mask, jnp.asarray(tokens.segment), -1)
    number = jnp.arange(tokens.slots, dtype=jnp.int32)[:, None]
    inside = text[:, None] == number  # [B,S,T]
    empty = ~(inside & counts[:, None]).any(2, keepdims=True)
    counts |= (inside & empty).any(1)
  return jnp.where(counts, text, -1), text


def _texts_in_rows(x: Array) -> jax.Array:
  """[B,S,...] -> [B*S,...], rows split over BATCH."""
  return lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]),
                     out_sharding=spec(BATCH, *(None,) * (x.ndim - 2)))


def unit(v: jax.Array) -> jax.Array:
  """v / |v| along the last axis; zero stays zero.  [B,E] -> [B,E]."""
  square = jnp.square(v).sum(-1, keepdims=True)
  return v * jax.lax.rsqrt(jnp.maximum(square, _NORM_EPS**2))


def _init(cfg: ModelConfig, key: Array, dtype) -> Params:
  keys = jax.random.split(key, 4)
  rows, width = sharding.batch_devices(), sequence_devices()
  flags = jnp.ones((rows, width), bool)
  tokens = Tokens(ids=jnp.zeros((rows, width), jnp.int32), mask=flags, pool=flags)
  tokens = jax.tree.map(lambda x: reshard(x, BATCH, None), tokens)
  plain = dataclasses.replace(cfg, lora=None, length=None)
  params = {'backbone': Backbone(plain).init(
      keys[0], tokens, 'bidirectional', None, length_rule.layout(plain, tokens)
      )['params']}
  head = heads.init(cfg.pooling, cfg.backbone.width, cfg.backbone.num_layers, keys[1])
  if head is not None:
    params['pooling'] = head
  for i, (layer, width, k) in enumerate(
      zip(cfg.dense, cfg.widths, jax.random.split(keys[2], max(len(cfg.dense), 1)))):
    params.setdefault('dense', {})[str(i)] = after_pooling.init(layer, width, k)
  if cfg.length is not None and cfg.length.method == 'clex':
    params['length'] = clex.init(jax.random.fold_in(key, _POSITIONS),
                                 cfg.backbone.rope_width)
  if cfg.lora is not None:
    params = lora.add(params, cfg.lora, keys[3])
  return jax.tree.map(lambda x: x.astype(dtype), params)
