"""The backbone: embeddings, scanned layers, final norm."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from jaxembed.config import BackboneConfig, ModelConfig
from jaxembed.kernels.attention import ATTENTION, pattern
from jaxembed.mesh import BATCH, reshard, spec, split_tokens, tokens_axis
from jaxembed.models import length, positions
from jaxembed.models.attention import Attention, Rotations, alibi, relative_bias
from jaxembed.models.experts import Experts
from jaxembed.models.layers import INIT, Embedding, FeedForward, LayerInput, Norm
from jaxembed.models.length_rule import ALL_NEAR, Distant, Layout, Rotation
from jaxembed.pooling import heads
from jaxembed.pooling.pool import POOLERS
from jaxembed.types import Tokens

# What a backward pass may take from the forward pass, least memory first: nothing, the
# sums between sublayers, or every product with a parameter and attention's output.
REMAT = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'residual': jax.checkpoint_policies.save_only_these_names('residual'),
    'dots': jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENTION)),
}


class Block(nn.Module):
  """One layer, in the form `nn.scan` wants.  x [B,T,D] -> [B,T,D]."""

  cfg: ModelConfig

  def __call__(self, x: Array, layer: dict, shared: dict) -> tuple[Array, Array | None]:
    """As often in a row as the parameters are used; `layer` then has an axis more."""
    cfg = self.cfg.backbone
    if not cfg.own_layers:
      return self.once(x, layer, shared)
    again = nn.scan(
        lambda block, x, layer: block.once(x, layer, shared),
        variable_broadcast='params', split_rngs={'params': False, 'dropout': True},
        length=cfg.num_layers // cfg.own_layers)
    return again(self, x, layer)

  @nn.compact
  def once(self, x: Array, layer: dict, shared: dict) -> tuple[Array, Array | None]:
    """One pass: attention and feed-forward, and what the pooling keeps of it."""
    cfg, lora = self.cfg.backbone, self.cfg.lora
    if self.cfg.prepend is not None:
      x = jnp.where(shared['placeholder'] & layer['prepend'],
                    _last_state(x, shared['mask']), x)
    mlp = (Experts(cfg, name='mlp') if cfg.experts
           else FeedForward(cfg, lora, name='mlp'))

    def norm(name):
      return Norm(cfg, name=name)

    def added(x, h, name):
      if cfg.block in ('sandwich', 'behind'):
        h = norm(name)(h)
      return _residual(x + (h if cfg.residual_scale == 1.0 else h * cfg.residual_scale))

    h = x if cfg.block in ('post', 'behind') else norm('attn_norm')(x)
    if not cfg.first_norm:
      h = jnp.where(layer['first'], x, h)
    out = self._attention(h, layer, shared)
    if cfg.block == 'parallel':
      return self._out(added(x, out + mlp(h), ''), shared)
    entered, x = x, added(x, out, 'attn_post_norm')
    if cfg.block == 'post':
      x = norm('attn_norm')(x)
    if cfg.added_twice:
      x = norm('attn_post_norm')(_residual(entered + x))
    h = x if cfg.block in ('post', 'behind') else norm('mlp_norm')(x)
    x = added(x, mlp(h), 'mlp_post_norm')
    if cfg.layer_input_dim:
      x = _residual(x + norm('input_norm')(LayerInput(cfg, lora, name='input')(
          x, shared['embedded'], layer['input'], shared['input_scale'])))
    if cfg.layer_scale:
      x = x * self.param('scale', nn.initializers.ones, (1,))[0].astype(x.dtype)
    return self._out(norm('mlp_norm')(x) if cfg.block == 'post' else x, shared)

  def _attention(self, h: Array, layer: dict, shared: dict) -> Array:
    """Attention of this layer; where layers are of two kinds, one of them is run, and
    the stacked parameters of the other have a place that nothing reads."""
    cfg, lora, impl = self.cfg.backbone, self.cfg.lora, self.cfg.attention_impl
    if not cfg.full_head_dim:
      return Attention(cfg, lora, impl, name='attn')(
          h, *_of_layer(layer, shared), shared['bias'], shared['distances'])
    wide = dataclasses.replace(
        cfg, head_dim=cfg.full_head_dim, num_kv_heads=cfg.full_kv_heads)
    seen, scale = shared['pattern'], shared['query_scale']

    def windowed(block, h):
      return Attention(cfg, lora, impl, name='attn')(
          h, seen, Rotations(shared['local'], scale), None)

    def full(block, h):
      return Attention(wide, lora, impl, name='full_attn')(
          h, dataclasses.replace(seen, window=0),
          Rotations(shared['global'], scale, shared['distant']), None)

    if self.is_initializing():  # the parameters of both
      return jnp.where(layer['windowed'], windowed(self, h), full(self, h))
    return nn.cond(layer['windowed'], windowed, full, self, h)

  def _out(self, x: Array, shared: dict) -> tuple[Array, Array | None]:
    return x, _layer_output(self.cfg, x, shared)


class Backbone(nn.Module):
  """Token states after the final norm.  Tokens [B,T] -> [B,T,D].

  With them, when cfg.pooling reads every layer, one vector of each: [L,B,D]
  float32, pooled inside the scan, so that no [L,B,T,D] ever exists; else None.
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(self, tokens: Tokens, mode: str, prefix: Array | None,
               layout: Layout) -> tuple[jax.Array, jax.Array | None]:
    cfg = self.cfg.backbone
    x = Embedding(cfg, self.cfg.dtype, length.frozen_rows(self.cfg), name='embed')(
        jnp.asarray(tokens.ids), layout.ids)
    shared = _shared(cfg, mode, tokens, layout, prefix)
    if heads.of_layer(self.cfg.pooling):
      shared['pool'] = tokens.pool
    if self.cfg.prepend is not None:
      shared |= {'mask': tokens.mask,
                 'placeholder': split_tokens(
                     _first(tokens, self.cfg.prepend.token_id))}
    shared |= self._by_distance(tokens.ids.shape[1])
    x, layer_outputs = self._layers(x, shared)
    if not cfg.final_norm:
      return x, layer_outputs
    x = Norm(cfg, name='norm')(x)
    if cfg.out_dim:
      x = self._projected(x, layer_outputs)
    if layer_outputs is not None:  # the last layer's states are those after the norm
      last = _layer_output(self.cfg, x, shared)
      layer_outputs = layer_outputs.at[-1].set(last)
    return x, layer_outputs

  def _by_distance(self, length: int) -> dict[str, Array | None]:
    """What the layers share of scores that depend on distances."""
    cfg, bias = self.cfg.backbone, None
    if cfg.disentangled:
      table = self.param('relative', INIT, (2 * cfg.relative_buckets, cfg.dim))
      table = reshard(table, None, None).astype(self.cfg.dtype)
      if cfg.disentangled_norm:
        table = Norm(cfg, name='relative_norm')(table)
      return {'bias': None, 'distances': table}
    if cfg.position == 'alibi':
      bias = reshard(jnp.asarray(alibi(cfg.num_heads, length)), 'tensor', None)
    elif cfg.relative_buckets and not cfg.relative_per_layer:
      table = self.param('relative', INIT, (cfg.relative_buckets, cfg.num_heads))
      bias = relative_bias(cfg, table, length)
    return {'bias': bias, 'distances': None}

  def _layers(self, x: Array, shared: dict) -> tuple[Array, Array | None]:
    """States behind the layers, and what the pooling keeps of each."""
    cfg = self.cfg.backbone
    if not cfg.num_layers:
      return x, None
    block = Block
    if self.cfg.remat != 'none':
      block = nn.remat(Block, policy=REMAT[self.cfg.remat], prevent_cse=False,
                       methods=['once'])
    in_axes: Any = (0, nn.broadcast)  # flax's annotation has one number
    layers = nn.scan(
        block, variable_axes={'params': 0}, in_axes=in_axes,
        split_rngs={'params': True, 'dropout': True}, length=cfg.stacked_layers)
    per_layer = _per_layer(self.cfg)
    if cfg.layer_input_dim:
      per_layer['input'], shared['input_scale'] = self._inputs()
      shared['embedded'] = x
    x, layer_outputs = layers(self.cfg, name='layers')(x, per_layer, shared)
    if layer_outputs is not None and cfg.own_layers:
      layer_outputs = jax.lax.reshape(
          layer_outputs, (cfg.num_layers, *layer_outputs.shape[2:]),
          out_sharding=spec(None, BATCH, None))
    return x, layer_outputs

  def _inputs(self) -> tuple[Array, Array]:
    """Kernels [L,D,P] with which layers read the embeddings, and a norm's scale [P]."""
    cfg = self.cfg.backbone
    width = cfg.layer_input_dim
    kernel = self.param('inputs_kernel', INIT, (cfg.dim, cfg.num_layers * width))
    kernel = reshard(kernel, None, None).reshape(cfg.dim, cfg.num_layers, width)
    scale = self.param('inputs_scale', nn.initializers.ones, (width,))
    return kernel.transpose(1, 0, 2), scale

  def _projected(self, x: Array, layer_outputs: Array | None) -> Array:
    cfg = self.cfg.backbone
    if layer_outputs is not None:
      raise ValueError(f'{self.cfg.pooling.kind} reads every layer, and the layers of '
                       f'this {cfg.family} are not as wide as what it gives')
    kernel = self.param('out_kernel', INIT, (cfg.dim, cfg.out_dim))
    return jnp.einsum('BTD,DE->BTE', x, reshard(kernel, None, None).astype(x.dtype),
                      out_sharding=spec(BATCH, tokens_axis(), None))


def _residual(x: Array) -> Array:
  """Marks the sum that a block hands on: what remat='residual' keeps."""
  return checkpoint_name(x, 'residual')


def _per_layer(model: ModelConfig) -> dict[str, Array]:
  """What differs between layers, stacked [L]; [own layers, L/own layers] where some
  share parameters."""
  cfg, layer = model.backbone, {}
  if model.prepend is not None:
    at = np.arange(cfg.num_layers)
    layer['prepend'] = (at >= model.prepend.start) & (at < model.prepend.stop)
  if _mixed(cfg) or cfg.full_head_dim:
    layer['windowed'] = np.array(cfg.windowed_layers)
  if len(set(cfg.rope_layers)) == 2:
    layer['turned'] = np.array(cfg.rope_layers)
  if not cfg.first_norm:
    layer['first'] = np.arange(cfg.num_layers) == 0
  if cfg.own_layers:
    layer = {name: x.reshape(cfg.own_layers, -1) for name, x in layer.items()}
  return layer


def _layer_output(cfg: ModelConfig, x: Array, shared: dict) -> Array | None:
  """What the pooling keeps of one layer's states.  x [B,T,D] -> [B,D] float32."""
  kind = heads.of_layer(cfg.pooling)
  return POOLERS[kind](x, shared['pool']) if kind else None


def _first(tokens: Tokens, token_id: int) -> Array:
  """True at the first `token_id` of each row.  -> [B,T,1]."""
  here = (tokens.ids == token_id) & tokens.mask
  return (here & (jnp.cumsum(here, axis=1) == 1))[:, :, None]


def _last_state(x: Array, mask: Array) -> Array:
  """x [B,T,D] at the last token of each row.  -> [B,1,D]."""
  return POOLERS['last'](x, mask)[:, None].astype(x.dtype)


def _mixed(cfg: BackboneConfig) -> bool:
  """Whether some layers are windowed and others are not."""
  return len(set(cfg.windowed_layers)) == 2


def _shared(cfg: BackboneConfig, mode: str, tokens: Tokens, layout: Layout,
            prefix: Array | None) -> dict:
  """What all layers read: the pattern of attention, and rotations of layers that
  attend globally and, where they differ, of windowed ones."""
  window = cfg.two_way_window if mode == 'bidirectional' else cfg.window
  listed = cfg.windowed_layers
  seen = pattern.of_tokens(
      mode, tokens.mask, tokens.segment, prefix=prefix,
      positions=None if prefix is None else positions.in_text(tokens.mask),
      window=window if any(listed) or not listed else 0)
  global_, local = layout.rotation, layout.local
  if listed and all(listed) and not cfg.full_head_dim:
    global_, local = local or global_, None
  return {'pattern': seen, 'global': global_, 'local': local, 'bias': None,
          'query_scale': layout.query_scale, 'distant': layout.distant}


def _of_layer(layer: dict, shared: dict) -> tuple[pattern.Pattern, Rotations]:
  """(pattern, rotations) of this layer."""
  seen, own, distant = shared['pattern'], shared['global'], shared['distant']
  if 'windowed' in layer:
    pick = layer['windowed']
    seen = dataclasses.replace(seen, windowed=pick)
    if shared['local'] is not None:
      own = jax.tree.map(lambda g, n: jnp.where(pick, n, g), own, shared['local'])
      if distant is not None:  # their distances are those of training
        distant = distant._replace(near=jnp.where(pick, ALL_NEAR, distant.near))
  if 'turned' in layer:
    own, distant = _turned(layer['turned'], own, distant)
  return seen, Rotations(own, shared['query_scale'], distant)


def _turned(here: Array, own: Rotation, distant: Distant | None
            ) -> tuple[Rotation, Distant | None]:
  """Rotations of a layer that has them or, where `here` is false, turns nothing."""
  def pick(rotation):
    cos, sin = rotation
    return jnp.where(here, cos, 1), jnp.where(here, sin, 0)

  if distant is not None:
    distant = distant._replace(grouped=pick(distant.grouped),
                               shifted=pick(distant.shifted))
  return pick(own), distant
