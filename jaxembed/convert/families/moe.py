"""Mixtral (Jiang et al. 2024, arXiv 2401.04088) and Qwen3's mixtures of experts
(arXiv 2505.09388): Mistral and Qwen3 with experts for a feed-forward."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import decoder, qwen, windows
from jaxembed.convert.families.family import Family
from jaxembed.convert.families.sizes import SMALL_DECODER, SMALL_WIDE_HEADS
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, experts

# Names of an expert's matrices in the file -> here.
_MIXTRAL = {'w1': 'gate', 'w3': 'up', 'w2': 'down'}
_QWEN3 = {'gate_proj': 'gate', 'up_proj': 'up', 'down_proj': 'down'}
_MOST_EXPERTS = 2**12
_ALIKE = 'supported: layers with experts and layers without, in one model'


def _read_mixtral(hf: Fields) -> dict[str, Any]:
  return decoder.read(hf) | windows.read(hf.get('sliding_window', 0), ()) | {
      'experts': _count(hf, 'num_local_experts', 8),
      'experts_used': hf.whole('num_experts_per_tok', 2, 1, _MOST_EXPERTS)}


def _write_mixtral(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {
      'num_local_experts': cfg.experts, 'num_experts_per_tok': cfg.experts_used})


def _read_qwen3(hf: Fields) -> dict[str, Any]:
  if hf.data.get('mlp_only_layers') not in (None, []):
    raise UnsupportedModel(f'config.json: mlp_only_layers is not {_ALIKE}')
  if hf.whole('decoder_sparse_step', 1, 1) != 1:
    raise UnsupportedModel(f'config.json: decoder_sparse_step is not {_ALIKE}')
  window = hf.get('sliding_window', 0) if hf.flag('use_sliding_window', False) else 0
  return decoder.read(hf) | decoder.biases(hf) | windows.read(window, ()) | {
      'ff_dim': hf.whole('moe_intermediate_size', 768, 1),
      'experts': _count(hf, 'num_experts', _count(hf, 'num_local_experts', 128)),
      'experts_used': hf.whole('num_experts_per_tok', 8, 1, _MOST_EXPERTS),
      'experts_normed': hf.flag('norm_topk_prob', False)}


def _count(hf: Fields, key: str, default: int) -> int:
  return hf.whole(key, default, 1, _MOST_EXPERTS)


def _write_qwen3(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return decoder.write(cfg, two_way, {
      'num_experts': cfg.experts, 'num_experts_per_tok': cfg.experts_used,
      'moe_intermediate_size': cfg.ff_dim, 'norm_topk_prob': cfg.experts_normed,
      'decoder_sparse_step': 1, 'mlp_only_layers': [],
      'use_sliding_window': bool(cfg.window)})


def _rows(cfg: BackboneConfig, block: str, names: Mapping[str, str]) -> Iterator[Row]:
  for row in decoder.rows(cfg):
    if '.mlp.' not in row.name:
      yield row
  theirs, ours = f'layers.{{l}}.{block}.', f'{LAYERS}mlp/'
  yield Row(f'{theirs}gate.weight', (f'{ours}router_kernel',), transpose=True)
  for name, path in names.items():
    yield from experts(f'{theirs}experts.{{e}}.{name}.weight', f'{ours}{path}_kernel',
                       cfg.experts)


MIXTRAL = Family(
    architecture='MixtralModel', read=_read_mixtral, write=_write_mixtral,
    rows=lambda cfg: _rows(cfg, 'block_sparse_moe', _MIXTRAL),
    prefixes=decoder.PREFIXES, ignored=decoder.IGNORED,
    defaults={'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'rope_theta': 1e6},
    cases={
        'Mixtral': SMALL_DECODER | {'num_local_experts': 4},
        'Mixtral, sliding window': SMALL_DECODER | {
            'num_local_experts': 4, 'num_experts_per_tok': 3, 'sliding_window': 6}})
QWEN3_MOE = dataclasses.replace(
    qwen.QWEN3, architecture='Qwen3MoeModel', read=_read_qwen3, write=_write_qwen3,
    rows=lambda cfg: _rows(cfg, 'mlp', _QWEN3),
    defaults={'sliding_window': 4096, 'num_key_value_heads': 4},
    cases={
        'Qwen3 MoE': SMALL_WIDE_HEADS | {
            'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 20,
            'norm_topk_prob': True},
        'Qwen3 MoE, shares as they are': SMALL_WIDE_HEADS | {
            'num_experts': 4, 'num_experts_per_tok': 2, 'moe_intermediate_size': 20}})
