"""Task adapters of jina-embeddings-v3 as its own code stores them: one is merged.

Beside each matrix ('...parametrizations.weight.original') lie low-rank updates of all
tasks (`lora_A`, `lora_B`). A source names the task behind '#': 'FOLDER#text-matching'.
Without one the matrices are read as they are, as its code computes without a task.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any
import warnings

import numpy as np

from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.tensor_files import BadCheckpoint, Tensor, open_folder
from jaxembed.files.folder import short

# Its class in modules.json, whose code is never run.
MODULE = 'custom_st.Transformer'
_WEIGHT = '.parametrizations.weight.'
_ORIGINAL, _UPDATE = f'{_WEIGHT}original', f'{_WEIGHT}0.lora_'


def split(source: str | os.PathLike) -> tuple[str | os.PathLike, str]:
  """The source and the task that it names; '' for none."""
  path, mark, task = str(source).rpartition('#')
  if not mark or not path or pathlib.Path(source).expanduser().exists():
    return source, ''
  return path, task


def tasks(hf: Mapping[str, Any], file: str = 'config.json') -> tuple[str, ...]:
  """The tasks of a parsed config.json; () where the model has no adapters."""
  if hf.get('model_type') != 'xlm-roberta':
    return ()
  return tuple(Fields(hf, file).texts('lora_adaptations', []))


def opener(hf: Mapping[str, Any], task: str, file: str
           ) -> Callable[[pathlib.Path], Mapping[str, Tensor]]:
  """What opens the weights beside `file` with the adapters of `task` merged.

  Raises:
    UnsupportedModel: a task that the model does not have.
  """
  known = tasks(hf, file)
  if task and task not in known:
    has = f'known: {", ".join(known)}' if known else 'it has no adapters of tasks'
    raise UnsupportedModel(f'{file}: the task {short(task)} is unknown; {has}')
  if not known:
    return open_folder
  if not task:
    warnings.warn(f'{file}: the adapters of its tasks are left out, as its code does '
                  'where no task is named; name one behind the source, '
                  f"'SOURCE#TASK': {', '.join(known)}", stacklevel=5)
  fields = Fields(hf, file)
  rank = fields.whole('lora_rank', 4, 1)
  scale = float(fields.number('lora_alpha', 1)) / rank
  return functools.partial(_open, number=known.index(task) if task else None,
                           count=len(known), rank=rank, scale=scale)


@dataclasses.dataclass(frozen=True)
class _Merged(Tensor):
  """A matrix [R,C] and the product of two narrow ones, [R,rank] and [rank,C]."""

  left: Tensor | None = None
  right: Tensor | None = None
  number: int = 0
  scale: float = 1.0

  def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Rows first:last."""
    assert self.left is not None and self.right is not None
    rows = super().read(first, last).astype(np.float32)
    left, right = (x.read(self.number, self.number + 1)[0].astype(np.float32)
                   for x in (self.left, self.right))
    return rows + self.scale * (left[first:first + len(rows)] @ right)


def _open(folder: pathlib.Path, number: int | None, count: int, rank: int,
          scale: float) -> dict[str, Tensor]:
  found, plain = open_folder(folder), {}
  for name, tensor in found.items():
    if _UPDATE in name:
      continue
    if _ORIGINAL in name:
      base = name.replace(_ORIGINAL, '')
      plain[f'{base}.weight'] = tensor if number is None else _merged(
          folder, base, tensor, found, number, count, rank, scale)
    else:
      plain[name] = tensor
  return plain


def _merged(folder, base: str, tensor: Tensor, found: Mapping[str, Tensor], number: int,
            count: int, rank: int, scale: float) -> Tensor:
  a, b = (found.get(f'{base}{_UPDATE}{x}') for x in 'AB')
  shapes = [None if x is None else x.shape for x in (a, b)]
  if len(tensor.shape) == 2:
    rows, columns = tensor.shape
    if shapes == [(count, rank, columns), (count, rows, rank)]:  # of a Linear
      a, b = b, a
    elif shapes != [(count, rows, rank), (count, rank, columns)]:  # of an Embedding
      a = None
  if a is None or b is None or len(tensor.shape) != 2:
    raise BadCheckpoint(
        f'{folder}: the adapters of {short(base)} are '
        f'{" and ".join(str(s and list(s)) for s in shapes)}, which do not belong to '
        f'{count} tasks of rank {rank} and a matrix {list(tensor.shape)}')
  return _Merged(tensor.file, tensor.dtype, tensor.shape, tensor.start, tensor.name,
                 a, b, number, scale)
