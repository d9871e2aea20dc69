"""EmbeddingGemma 2 (Google 2026), its text part: Gemma's encoder with two widths of
attention heads, and layers that read the embeddings again."""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, rope, sizes, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_WIDE_HEADS
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm
from jaxembed.files.folder import short

_HEADS = ('head_dim', 'num_key_value_heads')


def _read(hf: Fields) -> dict[str, Any]:
  count, radius = hf.need('num_hidden_layers'), hf.whole('sliding_window', 512, 1)
  every = hf.whole('sliding_window_pattern', 6, 1)
  layers = windows.layer_types(hf, radius, lambda i: (i + 1) % every != 0)
  layers = (*layers[:count - 1], False)  # the last one is made a full one
  fields = sizes.read(hf) | decoder.biases(hf) | {
      'norm_eps': hf.get('rms_norm_eps', 1e-6),
      'activation': hf.activation('hidden_activation', 'gelu_pytorch_tanh'),
      'embed_scale': math.sqrt(hf.need('hidden_size')),
      'layer_input_dim': hf.whole('hidden_size_per_layer_input', 512, 1),
      'out_dim': hf.whole('embedding_dim', 768, 1),
  } | rope.read_dual(hf, ('rope_theta', 1e6), ('rope_local_base_freq', 1e4))
  width, kv_heads = _full_heads(hf, layers)
  if not any(layers):
    return fields | {'head_dim': width, 'num_kv_heads': kv_heads,
                     'local_rope_theta': 0.0}
  return fields | windows.read_listed(radius + 1, layers) | {
      'two_way_window': radius + 1, 'full_head_dim': width, 'full_kv_heads': kv_heads}


def _full_heads(hf: Fields, layers: tuple[bool, ...]) -> tuple[int, int]:
  """Width of heads, and key and value heads, of the layers without a window."""
  given = hf.object('per_layer_config')
  if given is None:
    return (hf.whole('global_head_dim', 512, 1),
            hf.whole('num_global_key_value_heads', 1, 1))
  own, found = Fields({_number(key): value for key, value in given.items()},
                      f'{hf.file}: per_layer_config'), set()
  usual = tuple(hf.need(key) for key in _HEADS)
  if set(own.data) - {str(i) for i in range(len(layers))}:
    raise UnsupportedModel(f'{own.file}: {short(sorted(own.data))} are not numbers of '
                           f'{len(layers)} layers')
  for i, windowed in enumerate(layers):
    layer = own.within(str(i))
    if set(layer.data) - set(_HEADS):
      raise UnsupportedModel(f'{layer.file}: {short(sorted(layer.data))} is not '
                             f'supported; known: {", ".join(_HEADS)}')
    heads = tuple(layer.get(key, value) for key, value in zip(_HEADS, usual))
    if windowed and heads != usual:
      raise UnsupportedModel(f'{layer.file}: a layer with a window has other heads')
    if not windowed:
      found.add(heads)
  if len(found) > 1:
    raise UnsupportedModel(f'{own.file}: layers without a window have heads of several '
                           f'sizes: {sorted(found)}')
  (heads,) = found
  return heads


def _number(key: Any) -> str:
  """The number of a layer, which transformers writes with zeros in front."""
  return str(key).lstrip('0') or '0'


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  windowed = cfg.windowed_layers or (False,) * cfg.num_layers
  full = dict(zip(_HEADS, (cfg.full_head_dim or cfg.head_dim,
                           cfg.full_kv_heads or cfg.num_kv_heads)))
  hf = decoder.write(cfg, False, {
      'layer_types': windows.layer_types_to_hf(cfg),
      'sliding_window': max(cfg.two_way_window - 1, 1),
      'hidden_size_per_layer_input': cfg.layer_input_dim,
      'embedding_dim': cfg.out_dim,
      'per_layer_config': {
          str(i).zfill(len(str(cfg.num_layers - 1))): full
          for i, w in enumerate(windowed) if not w},
      'rope_parameters': rope.write_dual(cfg) if cfg.local_rope_theta else {
          'full_attention': rope.write(cfg)}}, activation_key='hidden_activation')
  return {key: value for key, value in hf.items()
          if key not in ('mlp_bias', 'use_cache', 'tie_word_embeddings')}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  full = tuple(i for i, w in enumerate(cfg.windowed_layers) if not w)
  others = tuple(i for i in range(cfg.num_layers) if i not in full)
  theirs, ours = 'layers.{l}.ple_block.', LAYERS
  for row in decoder.rows(cfg):
    if '.self_attn.' not in row.name or not cfg.full_head_dim:
      yield row
      continue
    yield dataclasses.replace(row, skip_layers=full)
    yield dataclasses.replace(row, skip_layers=others, paths=tuple(
        p.replace('/attn/', '/full_attn/') for p in row.paths))
  yield from linear(f'{theirs}per_layer_input_gate', False, f'{ours}input/gate')
  yield from linear(f'{theirs}per_layer_projection', False, f'{ours}input/out')
  yield from norm(f'{theirs}post_per_layer_input_norm', f'{ours}input_norm', cfg)
  yield Row('layers.{l}.layer_scalar', (f'{ours}scale',))
  yield Row('ple.per_layer_model_projection.weight', ('backbone/inputs_kernel',),
            transpose=True)
  yield Row('ple.per_layer_projection_norm.weight', ('backbone/inputs_scale',))
  yield Row('embedding_projection.weight', ('backbone/out_kernel',), transpose=True)


EMBEDDING_GEMMA2 = Family(
    architecture='EmbeddingGemma2TextModel', read=_read, write=_write, rows=_rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'num_key_value_heads': 2, 'head_dim': 256, 'num_attention_heads': 4},
    cases={
        'EmbeddingGemma 2': SMALL_WIDE_HEADS | {
            'head_dim': 8, 'sliding_window': 5, 'num_hidden_layers': 4,
            'sliding_window_pattern': 2, 'global_head_dim': 16,
            'hidden_size_per_layer_input': 12, 'embedding_dim': 24}})
