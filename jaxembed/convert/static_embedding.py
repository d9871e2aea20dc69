"""StaticEmbedding of sentence-transformers: a vector per token, and their mean.

Models of model2vec (potion) are of this kind. Texts are split by tokenizer.json as it
stands, without special tokens and without the settings of any other file.
"""

from collections.abc import Mapping
import dataclasses
import pathlib

import numpy as np

from jaxembed.config import ModelConfig
from jaxembed.convert.families.static import STATIC
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import Table
from jaxembed.convert.tensor_files import (
  SINGLE,
  BadCheckpoint,
  Tensor,
  is_float,
  open_folder,
)
from jaxembed.data import tokenizer_file
from jaxembed.models import presets

TYPE = 'StaticEmbedding'
FAMILY = 'static'
# Texts end where they end; no table of positions and no attention bounds them.
_ENDLESS = 2**20
_OURS, _MODEL2VEC = 'embedding.weight', 'embeddings'


@dataclasses.dataclass(frozen=True)
class _Folded(Tensor):
  """model2vec's rows of tokens: rows[mapping] times a weight per token."""

  rows: Tensor | None = None
  mapping: np.ndarray | None = None
  weights: np.ndarray | None = None

  def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Tokens first:last."""
    assert self.rows is not None
    tokens = slice(first, self.shape[0] if last is None else last)
    rows = self.rows.read()
    rows = rows[tokens] if self.mapping is None else rows[self.mapping[tokens]]
    if self.weights is None:
      return rows
    rows = rows.astype(np.promote_types(rows.dtype, np.float32))
    return (rows * self.weights[tokens, None]).astype(rows.dtype)


def tensors(folder: pathlib.Path) -> Mapping[str, Tensor]:
  """The table of the model in `folder` under sentence-transformers' name.

  Raises:
    BadCheckpoint: no table, one that is no matrix of floating-point numbers, or
      model2vec's parts that do not fit together.
  """
  found = dict(open_folder(folder))
  if _OURS in found or _MODEL2VEC not in found:
    table = found.get(_OURS)
  else:
    table = _fold(folder, found)
    found = {_OURS: table} | {name: x for name, x in found.items() if name not in (
        _MODEL2VEC, 'mapping', 'weights')}
  if table is None or len(table.shape) != 2 or not is_float(table.dtype):
    raise BadCheckpoint(
        f'{folder}/{SINGLE} has no matrix of floating-point numbers called {_OURS} or '
        f'{_MODEL2VEC}, as {TYPE} needs it')
  return found


def _fold(folder: pathlib.Path, found: Mapping[str, Tensor]) -> Tensor:
  rows = found[_MODEL2VEC]
  mapping, weights = found.get('mapping'), found.get('weights')
  if len(rows.shape) != 2 or (mapping is None and weights is None):
    return dataclasses.replace(rows, name=_OURS)
  count = rows.shape[0] if mapping is None else mapping.shape[0]
  numbers = None if mapping is None else mapping.read_numbers()
  if numbers is not None and not (
      numbers.ndim == 1 and numbers.dtype.kind == 'i'
      and ((numbers >= 0) & (numbers < rows.shape[0])).all()):
    raise BadCheckpoint(f'{folder}/{SINGLE}: mapping does not name rows of the '
                        f'{rows.shape[0]} of {_MODEL2VEC}')
  if weights is not None and weights.shape != (count,):
    raise BadCheckpoint(f'{folder}/{SINGLE}: weights has the shape '
                        f'{list(weights.shape)}, not [{count}]')
  return _Folded(rows.file, rows.dtype, (count, rows.shape[1]), rows.start, _OURS,
                 rows, numbers, None if weights is None else weights.read())


def read(folder: pathlib.Path) -> tuple[ModelConfig, Table]:
  """The model that a StaticEmbedding module in `folder` is, and its table."""
  count, width = tensors(folder)[_OURS].shape
  backbone = presets.backbone(FAMILY, **STATIC.read(Fields({
      'vocab_size': count, 'hidden_size': width, 'max_position_embeddings': _ENDLESS},
      str(folder))))
  cut = tokenizer_file.read(folder / 'tokenizer.json').truncation
  cfg = ModelConfig(
      backbone=backbone, normalize=False, bare_tokenizer=True,
      max_length=cut['max_length'] if cut else _ENDLESS)
  return cfg, Table(tuple(STATIC.rows(backbone)), prefixes=())
