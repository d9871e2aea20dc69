"""NomicBERT (Nussbaum et al. 2024, arXiv 2402.01613): BERT with rotary positions, gated
feed-forward and no biases, as nomic-embed v1 and v1.5, CodeRankEmbed and
snowflake-arctic-embed-m-long have it.

Its older config.json, that of the code in those folders, has GPT-2's names.
"""

from collections.abc import Iterator
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert, rope, sizes
from jaxembed.convert.families.family import ONLY, Family
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm

_THETA = 1000.0
_OLDER = {  # newer name: older name
    'hidden_size': 'n_embd', 'num_attention_heads': 'n_head',
    'num_hidden_layers': 'n_layer', 'intermediate_size': 'n_inner',
    'max_position_embeddings': 'n_positions', 'layer_norm_eps': 'layer_norm_epsilon',
    'rope_theta': 'rotary_emb_base'}
# What the older code computes where a key is absent -> what is computed here.
_MUST_BE = {
    'rotary_emb_fraction': (0.0, 1.0), 'qkv_proj_bias': (True, False),
    'mlp_fc1_bias': (True, False), 'mlp_fc2_bias': (True, False),
    'activation_function': ('gelu', 'swiglu')}


def _read(hf: Fields) -> dict[str, Any]:
  theta = _THETA
  if 'n_embd' in hf.data:
    hf, theta = _renamed(hf), 10000.0
  width, heads = hf.need('hidden_size'), hf.need('num_attention_heads')
  return sizes.read(hf) | rope.read(hf, hf.data, theta=theta) | {
      'num_kv_heads': heads, 'head_dim': hf.get('head_dim', width // heads),
      'norm_eps': hf.get('layer_norm_eps', 1e-12),
      'activation': hf.activation('hidden_act', 'silu'),
      'type_vocab_size': hf.get('type_vocab_size', 2)}


def _renamed(hf: Fields) -> Fields:
  """The older settings under the newer names."""
  for key, (absent, known) in _MUST_BE.items():
    value = hf.data.get(key, absent)
    if value != known:
      raise UnsupportedModel(f'{hf.file}: {key}={value!r:.80} is not supported (only '
                             f'{known!r}): it would change the numbers')
  data = {**hf.data, 'hidden_act': 'silu'}
  data |= {new: data[old] for new, old in _OLDER.items() if old in data}
  if data.get('intermediate_size') is None:  # as in GPT-2
    data['intermediate_size'] = 4 * hf.size('n_embd')
  data.setdefault('layer_norm_eps', 1e-5)
  return Fields(data, hf.file)


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  hf = bert.write(cfg, two_way) | {
      'head_dim': cfg.head_dim, 'rope_parameters': rope.write(cfg)}
  return hf | {'type_vocab_size': cfg.type_vocab_size}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'encoder.layers.{l}.', LAYERS
  yield from bert.embeddings(cfg, 'emb_ln')
  yield from linear(f'{theirs}attn.Wqkv', False, *(f'{ours}attn/{x}' for x in 'qkv'))
  yield from linear(f'{theirs}attn.out_proj', False, f'{ours}attn/o')
  for name, x in (('fc11', 'up'), ('fc12', 'gate'), ('fc2', 'down')):
    yield from linear(f'{theirs}mlp.{name}', False, f'{ours}mlp/{x}')
  yield from norm(f'{theirs}norm1', f'{ours}attn_norm', cfg)
  yield from norm(f'{theirs}norm2', f'{ours}mlp_norm', cfg)


NOMIC_BERT = Family(
    architecture='NomicBertModel', read=_read, write=_write, rows=_rows,
    prefixes=('bert.', 'nomic_bert.'), ignored=bert.IGNORED,
    only=ONLY | {
        'prenorm': False, 'parallel_block': False, 'causal': False,
        'rotary_emb_interleaved': False, 'rotary_emb_scale_base': None,
        'rotary_scaling_factor': None, 'num_experts': 0, 'norm_mlp': False,
        'use_rms_norm': False},
    cases={'NomicBERT': SMALL}, older_keys=('n_embd',))
