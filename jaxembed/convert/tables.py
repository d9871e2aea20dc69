"""Which tensor of a Hugging Face checkpoint is which parameter, both ways.

One row, one tensor. Names are those of the base model (AutoModel): no `model.`
prefix, no language-model head. `{l}` stands for the layer; our side stacks layers
on a leading axis. A matrix is stored [out, in] there and [in, out] here.
"""

import collections
from collections.abc import Iterable, Iterator
import dataclasses
import math

import numpy as np

from jaxembed.config import BackboneConfig, DenseConfig, ModelConfig, PoolingConfig
from jaxembed.convert.configs import attention_from_hf, config_from_hf
from jaxembed.convert.write_config import config_to_hf
from jaxembed.models import presets
from jaxembed.paths import flatten, unflatten
from jaxembed.pooling.head import Head
from jaxembed.types import Params

__all__ = [
    'Row', 'Table', 'attention_from_hf', 'backbone_table', 'base_names',
    'config_from_hf', 'config_to_hf', 'dense_table', 'expand', 'flatten', 'head_table',
    'is_decoder', 'iter_hf', 'matrix_shape', 'to_hf', 'unflatten',
]

LAYERS = 'backbone/layers/'
_OLD_NAMES = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of the checkpoint.

  Several paths: their matrices lie one after another along the tensor's first
  axis (a fused projection).
  """

  name: str
  paths: tuple[str, ...]
  transpose: bool = False
  out_axes: int = 1  # of a transposed kernel: how many axes form `out`
  skip_layers: tuple[int, ...] = ()  # layers that have no such tensor


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one checkpoint layout.

  `prefixes` may stand before every name; `ignored` are patterns of tensors that
  no embedding uses (heads of other tasks, buffers).
  """

  rows: tuple[Row, ...]
  prefixes: tuple[str, ...] = ('model.',)
  ignored: tuple[str, ...] = ()


def backbone_table(cfg: BackboneConfig) -> Table:
  """The table of cfg.family."""
  make, prefixes, ignored = _FAMILIES[cfg.family]
  return Table(tuple(make(cfg)), prefixes, ignored)


def base_names(names: Iterable[str], table: Table) -> dict[str, str]:
  """Name in a file -> name in `table`.

  Off come the prefix of a model for another task, one wrapper that stands before all
  of the model ('encoder.', 'module.model.'), and TensorFlow's gamma and beta.
  """
  own = {}
  for name in names:
    short = name
    for prefix in table.prefixes:
      short = short.removeprefix(prefix)
    for old, new in _OLD_NAMES.items():
      if short.endswith(old):
        short = short.removesuffix(old) + new
    own[name] = short
  anchor = table.rows[0].name
  wrapped = {s.removesuffix(anchor) for s in own.values() if s.endswith('.' + anchor)}
  if table.prefixes and anchor not in own.values() and len(wrapped) == 1:
    (wrapper,) = wrapped
    own = {name: s.removeprefix(wrapper) for name, s in own.items()}
  return own


def to_hf(params: Params, cfg: ModelConfig) -> dict[str, np.ndarray]:
  """Backbone tensors by base-model name, bit for bit, in the tables' order."""
  return dict(iter_hf(params, cfg))


def iter_hf(params: Params, cfg: ModelConfig,
            rows: tuple[Row, ...] | None = None
            ) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, tensor) of `rows`, layer by layer: one tensor in memory.

  Args:
    params: tree of models.encoder; may lie on devices, sharded or not.
    cfg: its configuration.
    rows: default: the backbone's.
  """
  rows = backbone_table(cfg.backbone).rows if rows is None else rows
  flat = flatten(params)
  for row, layer in expand(rows, cfg.backbone.num_layers):
    parts = [_to_file(flat[path], row, layer) for path in row.paths]
    tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
    yield row.name.format(l=layer), np.ascontiguousarray(tensor)


def expand(rows: tuple[Row, ...], layers: int) -> Iterator[tuple[Row, int | None]]:
  """Each row once per layer it stands for; None: it has no layers.

  Consecutive layered rows are walked layer by layer, the order of modules.
  """
  for layered, group in _runs(rows):
    for layer in range(layers) if layered else (None,):
      for row in group:
        if layer not in row.skip_layers:
          yield row, layer


def matrix_shape(shape: tuple[int, ...], row: Row) -> tuple[int, ...]:
  """Shape of one layer's parameter as the file holds it: [out, in] of a kernel."""
  if not row.transpose:
    return tuple(shape)
  at = len(shape) - row.out_axes
  return math.prod(shape[at:]), math.prod(shape[:at])


def is_decoder(cfg: BackboneConfig) -> bool:
  """Whether the family is causal by birth."""
  return cfg.family not in presets.ENCODERS


def _to_file(leaf, row: Row, layer: int | None) -> np.ndarray:
  x = np.asarray(leaf if layer is None else leaf[layer])
  if not row.transpose:
    return x
  return x.reshape(matrix_shape(x.shape, row)[::-1]).T


def _runs(rows: tuple[Row, ...]):
  runs = collections.deque()
  for row in rows:
    layered = '{l}' in row.name
    if not runs or runs[-1][0] != layered:
      runs.append((layered, []))
    runs[-1][1].append(row)
  return runs


# --- Families ----------------------------------------------------------------


def _norm(name: str, path: str, cfg: BackboneConfig, **options) -> Iterator[Row]:
  yield Row(f'{name}.weight', (f'{path}/scale',), **options)
  if cfg.norm_bias:
    yield Row(f'{name}.bias', (f'{path}/bias',), **options)


def _linear(name: str, bias: bool, *paths: str) -> Iterator[Row]:
  yield Row(f'{name}.weight', tuple(f'{p}/kernel' for p in paths), transpose=True)
  if bias:
    yield Row(f'{name}.bias', tuple(f'{p}/bias' for p in paths))


def _decoder(cfg: BackboneConfig) -> Iterator[Row]:
  """Llama's names, which Mistral, Qwen and Gemma share."""
  at, to = 'layers.{l}.', LAYERS
  yield Row('embed_tokens.weight', ('backbone/embed/token',))
  for x in 'qkv':
    yield from _linear(f'{at}self_attn.{x}_proj', cfg.qkv_bias, f'{to}attn/{x}')
  yield from _linear(f'{at}self_attn.o_proj', cfg.out_bias, f'{to}attn/o')
  if cfg.qk_norm:
    yield from _norm(f'{at}self_attn.q_norm', f'{to}attn/q_norm', cfg)
    yield from _norm(f'{at}self_attn.k_norm', f'{to}attn/k_norm', cfg)
  for x in ('gate', 'up', 'down'):
    yield from _linear(f'{at}mlp.{x}_proj', cfg.ff_bias, f'{to}mlp/{x}')
  yield from _decoder_norms(cfg)


def _phi3(cfg: BackboneConfig) -> Iterator[Row]:
  """Llama with q, k, v in one matrix, and gate and up in another."""
  at, to = 'layers.{l}.', LAYERS
  yield Row('embed_tokens.weight', ('backbone/embed/token',))
  yield from _linear(f'{at}self_attn.o_proj', False, f'{to}attn/o')
  yield from _linear(f'{at}self_attn.qkv_proj', False,
                     *(f'{to}attn/{x}' for x in 'qkv'))
  yield from _linear(f'{at}mlp.gate_up_proj', False,
                     f'{to}mlp/gate', f'{to}mlp/up')
  yield from _linear(f'{at}mlp.down_proj', False, f'{to}mlp/down')
  yield from _decoder_norms(cfg)


def _decoder_norms(cfg: BackboneConfig) -> Iterator[Row]:
  names = {'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'mlp_norm'}
  if cfg.block == 'sandwich':
    names = {'input_layernorm': 'attn_norm',
             'post_attention_layernorm': 'attn_post_norm',
             'pre_feedforward_layernorm': 'mlp_norm',
             'post_feedforward_layernorm': 'mlp_post_norm'}
  for name, path in names.items():
    yield from _norm('layers.{l}.' + name, LAYERS + path, cfg)
  yield from _norm('norm', 'backbone/norm', cfg)


def _bert(cfg: BackboneConfig) -> Iterator[Row]:
  at, to = 'encoder.layer.{l}.', LAYERS
  yield from _bert_embeddings(cfg)
  for x, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    yield from _linear(f'{at}attention.self.{name}', True, f'{to}attn/{x}')
  yield from _linear(f'{at}attention.output.dense', True, f'{to}attn/o')
  yield from _norm(f'{at}attention.output.LayerNorm', f'{to}attn_norm', cfg)
  yield from _bert_feed_forward(cfg)


def _mpnet(cfg: BackboneConfig) -> Iterator[Row]:
  at, to = 'encoder.layer.{l}.', LAYERS
  yield from _bert_embeddings(cfg)
  for x in 'qkvo':
    yield from _linear(f'{at}attention.attn.{x}', True, f'{to}attn/{x}')
  yield from _norm(f'{at}attention.LayerNorm', f'{to}attn_norm', cfg)
  yield from _bert_feed_forward(cfg)
  yield Row('encoder.relative_attention_bias.weight', ('backbone/relative',))


def _bert_embeddings(cfg: BackboneConfig) -> Iterator[Row]:
  yield Row('embeddings.word_embeddings.weight', ('backbone/embed/token',))
  yield Row('embeddings.position_embeddings.weight', ('backbone/embed/position',))
  if cfg.type_vocab_size:
    yield Row('embeddings.token_type_embeddings.weight', ('backbone/embed/type',))
  yield from _norm('embeddings.LayerNorm', 'backbone/embed/norm', cfg)


def _bert_feed_forward(cfg: BackboneConfig) -> Iterator[Row]:
  at, to = 'encoder.layer.{l}.', LAYERS
  yield from _linear(f'{at}intermediate.dense', True, f'{to}mlp/up')
  yield from _linear(f'{at}output.dense', True, f'{to}mlp/down')
  yield from _norm(f'{at}output.LayerNorm', f'{to}mlp_norm', cfg)


def _modernbert(cfg: BackboneConfig) -> Iterator[Row]:
  at, to = 'layers.{l}.', LAYERS
  yield Row('embeddings.tok_embeddings.weight', ('backbone/embed/token',))
  yield from _norm('embeddings.norm', 'backbone/embed/norm', cfg)
  # Layer 0 reads the normalised embeddings as they are.
  yield from _norm(f'{at}attn_norm', f'{to}attn_norm', cfg, skip_layers=(0,))
  yield from _linear(f'{at}attn.Wqkv', cfg.qkv_bias,
                     *(f'{to}attn/{x}' for x in 'qkv'))
  yield from _linear(f'{at}attn.Wo', cfg.out_bias, f'{to}attn/o')
  yield from _norm(f'{at}mlp_norm', f'{to}mlp_norm', cfg)
  yield from _linear(f'{at}mlp.Wi', cfg.ff_bias, f'{to}mlp/gate', f'{to}mlp/up')
  yield from _linear(f'{at}mlp.Wo', cfg.ff_bias, f'{to}mlp/down')
  yield from _norm('final_norm', 'backbone/norm', cfg)


# --- Heads -------------------------------------------------------------------


def dense_table(index: int, cfg: DenseConfig, width: int) -> Table:
  """One Dense module of sentence-transformers, for vectors of `width`."""
  rows = tuple(_linear('linear', cfg.bias, f'dense/{index}'))
  if cfg.residual and width != cfg.features:
    rows += (Row('residual.weight', (f'dense/{index}/residual',), transpose=True),)
  return Table(rows, prefixes=())


def head_table(head: Head, cfg: PoolingConfig) -> Table:
  """The torch module of a pooling."""
  return Table(tuple(
      Row(t.name, (f'pooling/{t.path}',), transpose=t.transpose, out_axes=t.out_axes)
      for t in head.tensors(cfg)), prefixes=())


_DECODER_JUNK = (r'^lm_head\.', r'^score\.', r'rotary_emb\.inv_freq$')
_BERT_JUNK = (r'^pooler\.', r'^cls\.', r'^lm_head\.', r'^classifier\.',
              r'position_ids$', r'token_type_ids$')
_MODERNBERT_JUNK = (r'^head\.', r'^decoder\.', r'^classifier\.')
_FAMILIES = {
    **dict.fromkeys(('mistral', 'ministral', 'llama', 'qwen2', 'qwen3', 'gemma2',
                     'gemma3_text'), (_decoder, ('model.',), _DECODER_JUNK)),
    'phi3': (_phi3, ('model.',), _DECODER_JUNK),
    'bert': (_bert, ('bert.',), _BERT_JUNK),
    'roberta': (_bert, ('roberta.',), _BERT_JUNK),
    'xlm-roberta': (_bert, ('roberta.',), _BERT_JUNK),
    'mpnet': (_mpnet, ('mpnet.',), _BERT_JUNK),
    'modernbert': (_modernbert, ('model.',), _MODERNBERT_JUNK),
}
