"""Conversion between parameters and tensors of Hugging Face checkpoints, both ways.

The rows of a backbone are its family's (convert/families); those of heads are here.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import math

import jax
import numpy as np

from jaxembed.config import BackboneConfig, DenseConfig, ModelConfig, PoolingConfig
from jaxembed.convert.configs import attention_from_hf, config_from_hf, config_to_hf
from jaxembed.convert.families import FAMILIES
from jaxembed.convert.rows import (
  LAYERS,
  Row,
  Table,
  expand,
  joined_shape,
  linear,
  matrix_shape,
  part,
  part_shape,
)
from jaxembed.models import presets
from jaxembed.paths import flatten, unflatten
from jaxembed.pooling import heads
from jaxembed.pooling.head import Head
from jaxembed.types import Params

__all__ = [
  'LAYERS',
  'Lazy',
  'Row',
  'Table',
  'attention_from_hf',
  'backbone_table',
  'base_names',
  'config_from_hf',
  'config_to_hf',
  'dense_table',
  'expand',
  'flatten',
  'has_pooler',
  'head_table',
  'in_transformers',
  'is_decoder',
  'iter_hf',
  'joined_shape',
  'lazy',
  'matrix_shape',
  'older_keys',
  'part',
  'part_shape',
  'to_hf',
  'unflatten',
]

_OLD_NAMES = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}


def backbone_table(cfg: BackboneConfig) -> Table:
  """The table of cfg.family."""
  family = FAMILIES[cfg.family]
  return Table(tuple(family.rows(cfg)), family.prefixes, family.ignored)


def is_decoder(cfg: BackboneConfig) -> bool:
  """Whether the family is pre-trained with a causal mask."""
  return cfg.family not in presets.ENCODERS


def has_pooler(cfg: BackboneConfig) -> bool:
  """Whether transformers gives the family a pooler, which no embedding uses."""
  return FAMILIES[cfg.family].pooler


def in_transformers(cfg: BackboneConfig) -> bool:
  """Whether transformers itself has the family, without code of a folder."""
  return bool(FAMILIES[cfg.family].architecture)


def older_keys(cfg: BackboneConfig) -> tuple[str, ...]:
  """Keys of a config.json of the family that transformers itself does not read."""
  return FAMILIES[cfg.family].older_keys


def base_names(names: Iterable[str], table: Table) -> dict[str, str]:
  """Name in a file -> name in `table`.

  Off come the prefix of a model for another task, one wrapper that stands before all
  of the model ('encoder.', 'module.model.'), and TensorFlow's gamma and beta.
  """
  bases = {}
  for name in names:
    base = name
    for prefix in table.prefixes:
      base = base.removeprefix(prefix)
    for old, new in _OLD_NAMES.items():
      if base.endswith(old):
        base = base.removesuffix(old) + new
    bases[name] = base
  anchor = table.rows[0].name
  wrapped = {b.removesuffix(anchor) for b in bases.values() if b.endswith('.' + anchor)}
  if table.prefixes and anchor not in bases.values() and len(wrapped) == 1:
    (wrapper,) = wrapped
    bases = {name: b.removeprefix(wrapper) for name, b in bases.items()}
  return bases


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
  for name, tensor in lazy(params, cfg, rows).items():
    yield name, tensor.read()


@dataclasses.dataclass(frozen=True)
class Lazy:
  """A tensor of a checkpoint that is made when it is asked for."""

  dtype: np.dtype
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes of the data."""
    return math.prod(self.shape) * self.dtype.itemsize


def lazy(params: Params, cfg: ModelConfig, rows: tuple[Row, ...] | None = None
         ) -> dict[str, Lazy]:
  """The tensors of `rows` by name, layer by layer; arguments as of `iter_hf`.

  params: jax.ShapeDtypeStruct leaves serve where nothing is read.
  """
  rows = backbone_table(cfg.backbone).rows if rows is None else rows
  flat, found = flatten(params), {}
  for row, layer in expand(rows, cfg.backbone.stacked_layers):
    leaves = [flat[path] for path in row.paths]
    parts = [part_shape(leaf.shape, row, layer) for leaf in leaves]
    found[row.name.format(l=layer)] = Lazy(
        np.dtype(leaves[0].dtype), joined_shape(parts),
        functools.partial(_read, leaves, row, layer))
  return found


def _read(leaves, row: Row, layer: int | None) -> np.ndarray:
  parts = [_to_file(leaf, row, layer) for leaf in leaves]
  return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _to_file(leaf, row: Row, layer: int | None) -> np.ndarray:
  if isinstance(leaf, jax.Array) and [d.platform for d in leaf.devices()] == ['cpu']:
    leaf = np.asarray(leaf)  # as it lies there; a slice on the device would be a copy
  x = np.asarray(part(leaf, row, layer))
  if not row.transpose:
    return x
  return x.reshape(matrix_shape(x.shape, row)[::-1]).T


# --- Heads -------------------------------------------------------------------


def dense_table(index: int, cfg: DenseConfig, width: int) -> Table:
  """One Dense module of sentence-transformers, for vectors of `width`."""
  if cfg.kind == 'layer_norm':
    return Table(tuple(Row(f'norm.{theirs}', (f'dense/{index}/{ours}',))
                       for theirs, ours in (('weight', 'scale'), ('bias', 'bias'))),
                 prefixes=())
  rows = tuple(linear('linear', cfg.bias, f'dense/{index}'))
  if cfg.residual and width != cfg.features:
    rows += (Row('residual.weight', (f'dense/{index}/residual',), transpose=True),)
  return Table(rows, prefixes=())


def head_table(head: Head, cfg: PoolingConfig) -> Table:
  """The torch module of a pooling."""
  return Table(tuple(
      Row(t.name, (f'pooling/{t.path}',), transpose=t.transpose, out_axes=t.out_axes)
      for t in head.tensors(heads.whole(cfg))), prefixes=())
