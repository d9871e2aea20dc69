"""Training-free changes of a model: vectors of an earlier layer, token prepending.

Both are transforms of (params, cfg); what comes back is an ordinary model.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxembed.config import ModelConfig, PrependConfig
from jaxembed.config.backbone import PER_LAYER
from jaxembed.mesh import reshard
from jaxembed.pooling.head import Twin
from jaxembed.types import Array, Params

# The torch module of a prepended token: it takes the place of the Transformer module.
TWIN = Twin('torch_token_prepending.py', 'token_prepending',
            'TokenPrependingTransformer', (
                ('prepend_text', 'text'), ('prepend_id', 'token_id'),
                ('prepend_start', 'start'), ('prepend_stop', 'stop')))


def at_layer(params: Params, cfg: ModelConfig, layer: int
             ) -> tuple[Params, ModelConfig]:
  """The model that ends after `layer` layers (1..L), without the final norm.

  Its states are hidden_states[layer] of transformers. The layers behind are gone:
  it is smaller and faster as well. Negative numbers count from the end as they
  do there: -1 is the whole model with its final norm, -2 lacks the last layer.

  Raises:
    ValueError: no such layer.
  """
  count = cfg.backbone.num_layers
  if layer in (-1, count + 1):
    return params, cfg
  end = layer if layer >= 0 else count + 1 + layer
  if not 1 <= end <= count or (layer == count and not cfg.backbone.final_norm):
    if layer == count:
      return params, cfg
    raise ValueError(f'layer {layer} does not exist; choose 1 to {count}, or -1 for '
                     'the whole model')
  uses = count // cfg.backbone.stacked_layers
  own = -(-end // uses)
  if own > 1 and end % uses:
    raise ValueError(f'layer {layer} lies between layers that share their parameters; '
                     f'choose a multiple of {uses}')
  backbone = {k: v for k, v in params['backbone'].items()
              if k not in ('norm', 'out_kernel')}
  if cfg.backbone.layer_input_dim:
    kept = end * cfg.backbone.layer_input_dim
    backbone['inputs_kernel'] = backbone['inputs_kernel'][:, :kept]
  backbone['layers'] = jax.tree.map(lambda x: x[:own], backbone['layers'])
  shape = dataclasses.replace(
      cfg.backbone, num_layers=end, final_norm=False, out_dim=0,
      own_layers=own if cfg.backbone.own_layers else 0,
      **{name: getattr(cfg.backbone, name)[:end] for name in PER_LAYER})
  return ({**params, 'backbone': backbone},
          dataclasses.replace(cfg, backbone=shape))


def prepend(params: Params, cfg: ModelConfig, key: Array, start: int, stop: int
            ) -> tuple[Params, ModelConfig]:
  """A model with a placeholder token that lets early tokens see the sentence.

  Token Prepending (Fu et al. 2024, arXiv 2412.11556): before each of the layers
  start..stop-1 the placeholder's state is overwritten with the last token's. It
  is a new row of the token table, the id cfg.prepend.token_id; put that id in
  front of the sentence, or have the tokenizer do it (`with_band`).

  Raises:
    ValueError: the band lies outside the layers.
  """
  return with_row(params, key), with_band(cfg, start, stop)


def with_band(cfg: ModelConfig, start: int, stop: int, text: str = '') -> ModelConfig:
  """The configuration of `prepend`.

  The tokenizer puts `text` between prompt and sentence; the published template is the
  prompt 'This sentence : "' and ModelConfig.eos_text '" means in one word: "'.
  Published settings: start 1, stop 7 for Llama-2-7B, with states of layer 27; 1, 3 for
  Llama-3-8B; 1, 6 for Qwen2-7B and Gemma-2-9B.

  Raises:
    ValueError: the band lies outside the layers.
  """
  count, size = cfg.backbone.num_layers, cfg.backbone.vocab_size
  if not 0 <= start <= stop <= count:
    raise ValueError(f'prepend band {start}..{stop} lies outside 0..{count}')
  return dataclasses.replace(
      cfg, prepend=PrependConfig(token_id=size, start=start, stop=stop, text=text),
      backbone=dataclasses.replace(cfg.backbone, vocab_size=size + 1))


def with_row(params: Params, key: Array) -> Params:
  """The parameters of `prepend`: one more row of the token table, N(0,1)."""
  embed = params['backbone']['embed']
  table = embed['token']
  row = jax.random.normal(key, (1, table.shape[1])).astype(table.dtype)
  row = reshard(row, None, 'fsdp')
  backbone = {**params['backbone'],
              'embed': {**embed, 'token': jnp.concatenate([table, row])}}
  return {**params, 'backbone': backbone}
