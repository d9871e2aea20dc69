"""DeBERTa v2 and v3 (He et al. 2021 and 2023, arXiv 2006.03654 and 2111.09543): BERT
whose scores are sums of products of contents and of distances."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.families import bert
from jaxembed.convert.families.family import ONLY_BUT_WIDTH
from jaxembed.convert.families.sizes import SMALL
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.rows import LAYERS, Row, linear, norm

_TERMS = ('c2p', 'p2c')


def _read(hf: Fields) -> dict[str, Any]:
  fields = bert.read(hf)
  terms = _terms(hf)
  learned = hf.flag('position_biased_input', True)
  fields |= {
      'norm_eps': hf.get('layer_norm_eps', 1e-7),
      'type_vocab_size': hf.get('type_vocab_size', 0),
      'position': 'learned' if learned else 'none',
      'positions': 'index' if learned else 'mask',
      'query_scale': max((1 + len(terms)) * fields['head_dim'], 1)**-0.5,
      'relative_buckets': 0, 'disentangled': ()}
  width = hf.whole('embedding_size', fields['dim'], 1)
  if width != fields['dim']:
    raise UnsupportedModel(f'config.json: embedding_size={width} is not supported: it '
                           f'must be hidden_size {fields["dim"]}')
  if not hf.flag('relative_attention', False):
    if terms:
      raise UnsupportedModel(
          f'config.json: pos_att_type={list(terms)} without relative_attention is not '
          'supported')
    return fields
  span = (_positive(hf, 'max_relative_positions', 'max_position_embeddings')
          or fields['max_positions'])
  buckets = _positive(hf, 'position_buckets', 'none')
  if buckets and not 2 <= buckets < 2 * (span - 1):
    raise UnsupportedModel(f'config.json: position_buckets={buckets} of '
                           f'max_relative_positions={span} are not supported')
  return fields | {
      'disentangled': terms, 'relative_buckets': buckets or span,
      'relative_distance': span, 'relative_log': bool(buckets),
      'disentangled_shared': hf.flag('share_att_key', False),
      'disentangled_norm': 'layer_norm' in _parts(hf.text('norm_rel_ebd', 'none'))}


def _positive(hf: Fields, key: str, otherwise: str) -> int:
  """A count; 0 where it is absent, 0 or -1, which stands for `otherwise`."""
  value = hf.data.get(key)
  if value is None:
    return 0
  if type(value) is not int or not -1 <= value <= 2**20:
    raise UnsupportedModel(f'config.json: {key} is {value!r:.80}; it must be a whole '
                           f'number, -1 for {otherwise}')
  return max(value, 0)


def _terms(hf: Fields) -> tuple[str, ...]:
  given = hf.data.get('pos_att_type')
  if given is not None and not isinstance(given, str):
    given = '|'.join(hf.texts('pos_att_type'))
  found = _parts(given or '')
  unknown = sorted(set(found) - {*_TERMS, ''})
  if unknown:
    raise UnsupportedModel(f'config.json: pos_att_type {unknown!r:.80} is not '
                           f'supported; known: {", ".join(_TERMS)}')
  return tuple(term for term in _TERMS if term in found)


def _parts(text: str) -> list[str]:
  return [part.strip() for part in text.lower().split('|')]


def _write(cfg: BackboneConfig, two_way: bool) -> dict[str, Any]:
  return bert.write(cfg, two_way) | {
      'type_vocab_size': cfg.type_vocab_size, 'pos_att_type': list(cfg.disentangled),
      'position_biased_input': cfg.position == 'learned',
      'relative_attention': bool(cfg.disentangled),
      'max_relative_positions': cfg.relative_distance,
      'position_buckets': cfg.relative_buckets if cfg.relative_log else -1,
      'share_att_key': cfg.disentangled_shared,
      'norm_rel_ebd': 'layer_norm' if cfg.disentangled_norm else 'none'}


def _rows(cfg: BackboneConfig) -> Iterator[Row]:
  theirs, ours = 'encoder.layer.{l}.', LAYERS
  yield from bert.embeddings(cfg)
  names = {'query_proj': 'q', 'key_proj': 'k', 'value_proj': 'v'}
  if cfg.disentangled and not cfg.disentangled_shared:
    names |= {'pos_key_proj': 'pos_k'} if 'c2p' in cfg.disentangled else {}
    names |= {'pos_query_proj': 'pos_q'} if 'p2c' in cfg.disentangled else {}
  for name, x in names.items():
    yield from linear(f'{theirs}attention.self.{name}', True, f'{ours}attn/{x}')
  yield from linear(f'{theirs}attention.output.dense', True, f'{ours}attn/o')
  yield from norm(f'{theirs}attention.output.LayerNorm', f'{ours}attn_norm', cfg)
  yield from bert.feed_forward(cfg)
  if cfg.disentangled:
    yield Row('encoder.rel_embeddings.weight', ('backbone/relative',))
    if cfg.disentangled_norm:
      yield from norm('encoder.LayerNorm', 'backbone/relative_norm', cfg)


# deberta-v3-*, deberta-v2-xlarge and what the two leave apart.
_V3 = SMALL | {
    'relative_attention': True, 'position_buckets': 8, 'pos_att_type': ['p2c', 'c2p'],
    'norm_rel_ebd': 'layer_norm', 'share_att_key': True, 'position_biased_input': False,
    'max_relative_positions': 20}

DEBERTA_V2 = dataclasses.replace(
    bert.BERT, architecture='DebertaV2Model', read=_read, write=_write, rows=_rows,
    prefixes=('deberta.',), pooler=False,
    ignored=(*bert.IGNORED, r'^embeddings\.position_embeddings\.',
             r'^(lm|mask)_predictions\.', r'^qa_outputs\.'),
    only=ONLY_BUT_WIDTH | {'conv_kernel_size': 0, 'attention_head_size': None},
    cases={'DeBERTa v3': _V3,
           'DeBERTa v2, apart': SMALL | {
               'relative_attention': True, 'pos_att_type': 'c2p|p2c',
               'type_vocab_size': 2, 'max_relative_positions': 9},
           'DeBERTa v2, c2p': _V3 | {'pos_att_type': ['c2p'], 'share_att_key': False},
           'DeBERTa v2, plain': SMALL})
