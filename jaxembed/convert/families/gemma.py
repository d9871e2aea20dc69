"""Gemma (arXiv 2403.08295), Gemma 2 (2408.00118), the text part of Gemma 3 (2503.19786)
and EmbeddingGemma (2509.20354)."""

import dataclasses
import math
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, rope, sizes, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_WIDE_HEADS
from jaxembed.convert.fields import Fields

_GEMMA_ACTIVATION = 'hidden_act', 'gelu_pytorch_tanh'
_ACTIVATION = 'hidden_activation', 'gelu_pytorch_tanh'


def _read_gemma(hf: Fields) -> dict[str, Any]:
  fields = decoder.read(hf, _GEMMA_ACTIVATION) | decoder.biases(hf)
  if fields['activation'] == 'gelu':  # a slip of the released files, read as tanh
    fields['activation'] = 'gelu_tanh'
  return fields | {'head_dim': hf.get('head_dim', 256),
                   'embed_scale': math.sqrt(hf.need('hidden_size'))}


def _write_gemma(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {'tie_word_embeddings': True})


def _read_gemma2(hf: Fields) -> dict[str, Any]:
  window = hf.get('sliding_window', 4096)
  return decoder.read(hf, _ACTIVATION) | _attention(hf) | windows.read(
      window, windows.layer_types(hf, window, lambda i: i % 2 == 0))


def _read_gemma3(hf: Fields) -> dict[str, Any]:
  window = hf.get('sliding_window', 4096)
  every = hf.whole('sliding_window_pattern', 6, 1)
  fields = sizes.read(hf) | _attention(hf) | {
      'norm_eps': hf.get('rms_norm_eps', 1e-6),
      'activation': hf.activation(*_ACTIVATION),
  } | rope.read_dual(hf, ('rope_theta', 1e6), ('rope_local_base_freq', 1e4))
  fields |= windows.read_listed(
      window, windows.layer_types(hf, window, lambda i: (i + 1) % every != 0))
  if hf.get('use_bidirectional_attention'):
    # There the window is the whole span, half of it on each side; with is_causal
    # false as well, transformers sees one key further.
    fields['two_way_window'] = window // 2 + 1 + (hf.data.get('is_causal') is False)
  return fields


def _attention(hf: Fields) -> dict[str, Any]:
  return decoder.biases(hf) | {
      'head_dim': hf.get('head_dim', 256),
      'embed_scale': math.sqrt(hf.need('hidden_size')),
      'query_scale': hf.number('query_pre_attn_scalar', 256) ** -0.5,
      'softcap': float(hf.number('attn_logit_softcapping', 0.0))}


def _write_gemma2(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {
      'tie_word_embeddings': True, 'layer_types': windows.layer_types_to_hf(cfg),
      'query_pre_attn_scalar': round(cfg.query_scale ** -2),
      'attn_logit_softcapping': cfg.softcap or None},
      activation_key=_ACTIVATION[0])


def _write_gemma3(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  hf = _write_gemma2(cfg, two_way=False)
  if two_way:  # the field is the whole span
    hf |= {'use_bidirectional_attention': True,
           'sliding_window': 2 * (cfg.two_way_window - 1)}
  return hf


GEMMA = Family(
    architecture='GemmaModel', read=_read_gemma, write=_write_gemma, rows=decoder.rows,
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'num_key_value_heads': 16},
    cases={'Gemma': SMALL_WIDE_HEADS})
GEMMA2 = Family(
    architecture='Gemma2Model', read=_read_gemma2, write=_write_gemma2,
    rows=decoder.rows, prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'num_key_value_heads': 4, 'attn_logit_softcapping': 50.0},
    cases={'Gemma 2': SMALL_WIDE_HEADS | {
        'hidden_act': 'relu',  # not its key: passed over
        'sliding_window': 6, 'query_pre_attn_scalar': 24,
        'attn_logit_softcapping': 2.0}})
GEMMA3_TEXT = dataclasses.replace(
    GEMMA2, architecture='Gemma3TextModel', read=_read_gemma3, write=_write_gemma3,
    # Multimodal checkpoints leave these out.
    defaults={'vocab_size': 262208, 'num_attention_heads': 8, 'num_key_value_heads': 4,
              'max_position_embeddings': 131072},
    cases={
        'EmbeddingGemma': SMALL_WIDE_HEADS | {
            'sliding_window': 12, 'layer_types': windows.SLIDING,
            'use_bidirectional_attention': True},
        'Gemma 3 text': SMALL_WIDE_HEADS | {
            'sliding_window': 6, 'query_pre_attn_scalar': 24,
            'layer_types': windows.SLIDING},
    })
