"""Tensors of a PEFT adapter, by the module that they change, and their sums with it.

Whatever PEFT can do to a matrix besides one low-rank update of one scale (ranks and
scales by module, DoRA, biases, modules saved whole, adapted embeddings, adapters in
some layers) becomes part of the matrix, as its `merge_and_unload` makes it.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxembed.convert import tables
from jaxembed.convert.peft_settings import Settings
from jaxembed.convert.tensor_files import Tensor

PREFIX = 'base_model.model.'
# Behind the name of a module; `weight` and `bias` are of modules that are saved whole.
_PARTS = re.compile(r'\.(lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]'
                    r'|lora_magnitude_vector|token_adapter\.trainable_tokens_delta'
                    r'|weight|bias)$')
# What PEFT puts between a module and the names of its tensors.
_WRAPPERS = re.compile(r'\.(base_layer|modules_to_save)$')
_PAIRS = {'lora_A.weight': 'lora_B.weight', 'lora_embedding_A': 'lora_embedding_B'}


@dataclasses.dataclass
class Module:
  """The tensors of one module that an adapter changes.

  Attributes:
    name: as in the file, where patterns of ranks match it.
    parts: 'lora_A.weight', 'bias', ... -> tensor; what is used is taken out.
  """

  name: str
  parts: dict[str, Tensor]


def by_module(tensors: Mapping[str, Tensor], table: tables.Table) -> dict[str, Module]:
  """Module of the base model -> its tensors, without those that no embedding uses."""
  found: dict[str, Module] = {}
  for name, tensor in tensors.items():
    if '.original_module.' in name:  # of a module whose saved copy is used instead
      continue
    own = re.sub(r'(lora_magnitude_vector)\.weight$', r'\1', name.removeprefix(PREFIX))
    match = _PARTS.search(own)
    module, part = (own[:match.start()], match[1]) if match else (own, '')
    module = base = _WRAPPERS.sub('', module)
    for prefix in table.prefixes:
      base = base.removeprefix(prefix)
    if not any(re.search(p, f'{base}.{part}') for p in table.ignored):
      found.setdefault(base, Module(module, {})).parts[part] = tensor
  return found


def left(modules: Mapping[str, Module]) -> list[str]:
  """Names of tensors that nothing has taken."""
  return sorted(f'{base}.{part}'.strip('.')
                for base, module in modules.items() for part in module.parts)


def fold(modules: Mapping[str, Module], settings: Settings, rows, flat: dict[str, Any],
         layers: int) -> tuple[dict[str, Any], list[str]]:
  """The parameters that change, by path, and what does not fit.

  `flat` may hold jax.ShapeDtypeStruct: then nothing is computed, and it is they that
  come back. Sums are float32, rounded once to the parameter's dtype.
  """
  changed: dict[str, np.ndarray] = {}
  problems: list[str] = []
  abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in flat.values())
  for row, layer in tables.expand(rows, layers):
    base, _, kind = row.name.format(l=layer).rpartition('.')
    if base not in modules:
      continue
    sizes = [tables.part_shape(flat[p].shape, row, layer) for p in row.paths]
    total = tables.joined_shape(sizes)
    try:
      change = (_weight if kind == 'weight' else _bias)(modules[base], total, settings)
    except _Misfit as e:
      problems.append(f'{base} {e}')
      continue
    if change is None or abstract:
      continue
    for path in row.paths:
      if path not in changed:
        changed[path] = np.array(flat[path], np.float32)
    held = [tables.part(changed[path], row, layer) for path in row.paths]
    new = change(np.concatenate([_turned(x, row) for x in held]))
    ends = np.cumsum([size[0] for size in sizes])[:-1]
    for x, y in zip(held, np.split(new, ends)):
      x[...] = _turned(y, row)
  return {path: jnp.asarray(x, flat[path].dtype) for path, x in changed.items()
          }, problems


class _Misfit(Exception):
  """What a module wants, and what the file has."""


def _turned(x: np.ndarray, row: tables.Row) -> np.ndarray:
  return x.T if row.transpose else x


def _bias(module: Module, size: tuple[int, ...], settings: Settings):
  """Function of a bias; None: it stays."""
  whole, added = module.parts.pop('bias', None), module.parts.pop('lora_B.bias', None)
  for tensor in filter(None, (whole, added)):
    _fits('a bias', tensor, size)
  if whole is None and added is None:
    return None
  _, scale = settings.of(module.name)

  def change(x):
    x = x if whole is None else _read(whole)
    return x if added is None else x + np.float32(scale) * _read(added)

  return change


def _weight(module: Module, size: tuple[int, ...], settings: Settings):
  """Function of a matrix [out, in] or of an embedding [V, D]; None: it stays."""
  parts = module.parts
  whole = parts.pop('weight', None)
  if whole is not None:
    _fits('a weight', whole, size)
  rows = parts.pop('token_adapter.trainable_tokens_delta', None)
  if rows is not None:
    return _rows(module, rows, size, settings)
  found = [(kind, parts.pop(kind, None), parts.pop(other, None))
           for kind, other in _PAIRS.items() if {kind, other} & set(parts)]
  magnitude = parts.pop('lora_magnitude_vector', None) if settings.dora else None
  if not found:
    return None if whole is None else lambda x: _read(whole)
  if len(found) > 1:
    raise _Misfit(f'has updates of two kinds, {found[0][0]} and {found[1][0]}')
  kind, a, b = found[0]
  rank, scale = settings.of(module.name)
  embeds = kind == 'lora_embedding_A'
  out, width = reversed(size) if embeds else size
  if a is None or b is None or a.shape != (rank, width) or b.shape != (out, rank):
    raise _Misfit(f'wants A [{rank}, {width}] and B [{out}, {rank}], got '
                  f'{a and list(a.shape)} and {b and list(b.shape)}')
  if settings.dora and (embeds or magnitude is None):
    raise _Misfit('has DoRA in an embedding, which is not supported' if embeds else
                  'lacks its lora_magnitude_vector (use_dora)')
  if magnitude is not None:
    _fits('a lora_magnitude_vector', magnitude, (out,))

  def change(x):
    x = x if whole is None else _read(whole)
    update = np.float32(scale) * (_read(b) @ _read(a))
    x = x + (update.T if embeds else update)
    if magnitude is None:
      return x
    length = np.linalg.norm(x, axis=1)
    return (_read(magnitude) / length)[:, None] * x

  return change


def _rows(module: Module, rows: Tensor, size: tuple[int, ...], settings: Settings):
  """Function of an embedding of which some rows have values of their own."""
  ids = next((ids for name, ids in settings.tokens.items()
              if module.name.endswith(name)), ())
  _fits('trainable tokens', rows, (len(ids), size[1]))
  if max(ids, default=0) >= size[0]:
    raise _Misfit(f'has {size[0]} rows, and trainable_token_indices names row '
                  f'{max(ids)}; add its tokens to the base model first')

  def change(x):
    x = x.copy()
    x[list(ids)] = _read(rows)
    return x

  return change


def _fits(what: str, tensor: Tensor, size: tuple[int, ...]) -> None:
  if tensor.shape != tuple(size):
    raise _Misfit(f'wants {what} {list(size)}, got {list(tensor.shape)}')


def _read(tensor: Tensor) -> np.ndarray:
  return tensor.read().astype(np.float32)
