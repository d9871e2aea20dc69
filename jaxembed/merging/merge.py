"""Merging of models as Bundles: checked to be of one kind, then tensor by tensor.

Adapters are folded into their weights first: a mean of A and a mean of B are not the
mean of their products. A stacked parameter is merged layer by layer, so that a tensor
is what a checkpoint calls one. All models are held at once, the result beside them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any
import warnings

import jax
import numpy as np

from jaxembed import paths, types
from jaxembed.bundle import Bundle
from jaxembed.data import added_tokens
from jaxembed.merging import slerp
from jaxembed.merging.arithmetic import (
    DEFAULTS,
    METHODS,
    Method,
    Options,
    weighted,
)
from jaxembed.models import lora

# Fields of ModelConfig that say how a model is run, or how long its texts may be.
_FREE = ('max_length', 'dtype', 'precision', 'remat', 'attention_impl', 'lora')


def merge(models: Sequence[Bundle], method: str = 'soup', *, base: Bundle | None = None,
          options: Options = DEFAULTS) -> Bundle:
  """One model out of several that were trained from the same weights.

  Texts, prompts and tokenizer are those of the first; prompts of other names are added
  from the others. Parameters have the first one's dtypes. A loss's own parameters
  (loss/...) are left out.

  Args:
    models: adapters are folded into the weights beneath.
    method: a key of arithmetic.METHODS: soup, task_arithmetic, slerp or ties.
    base: what the models were trained from; of slerp, makes the angles those between
      task vectors.
    options: arithmetic.Options; one that the method does not read is refused.

  Raises:
    ValueError: models that differ in more than their weights, the tensor or field is
      named; an option that means nothing here; a result that is not finite.
  """
  chosen = _checked(method, base, options)
  if not models:
    raise ValueError('there is nothing to merge; name at least one model')
  every, count = plain(models, base), len(models)
  trees = [paths.flatten(m.params) for m in every]
  coefficients = (_of_whole(trees, count, options)
                  if options.whole and method == 'slerp' else None)

  def combine(tensors: list[np.ndarray]) -> np.ndarray:
    start = tensors[count] if base else None
    if coefficients is not None:
      return weighted(tensors[:count], start, coefficients)
    return chosen.merge(tensors[:count], start, options)

  merged = {path: mapped(path, [t[path] for t in trees], combine)
            for path in trees[0]}
  return made(every[:count], merged)


def made(models: Sequence[Bundle], merged: dict[str, Any]) -> Bundle:
  """The first of `models` with parameters of them all, by path, and their prompts."""
  return dataclasses.replace(
      models[0], params=paths.unflatten(merged), prompts=_prompts(models),
      base='', step=None, original=None)


def plain(models: Sequence[Bundle], base: Bundle | None = None) -> list[Bundle]:
  """The models, then the base, without adapters or parameters of a loss; checked to be
  of one kind. A base may pool and normalise otherwise, if its tensors are the same.

  Raises:
    ValueError: they differ in a field that changes vectors, in the ids of their
      tokens, or in a tensor's name or shape.
  """
  found = []
  for model in [*models, *([base] if base else [])]:
    params, cfg = lora.merge(model.params, model.cfg)
    params = {k: v for k, v in params.items() if k != 'loss'}
    found.append(dataclasses.replace(model, params=params, cfg=cfg))
  for number, other in enumerate(found[1:], 1):
    _check_same(found[0], other, is_base=number == len(models))
  return found


def _checked(name: str, base: Bundle | None, options: Options) -> Method:
  if name not in METHODS:
    raise ValueError(f'merging method {name!r} is unknown; choose one of '
                     f'{", ".join(METHODS)}')
  method = METHODS[name]
  if method.base == 'needed' and base is None:
    raise ValueError(f'{name} adds up what training changed, so it needs the model '
                     'that training began from: name it as base (--base)')
  if method.base == 'unused' and base is not None:
    others = ', '.join(k for k, m in METHODS.items() if m.base != 'unused')
    raise ValueError(f'{name} does not use a base; leave it out, or choose {others}')
  for field in dataclasses.fields(Options):
    value = getattr(options, field.name)
    if value != field.default and field.name not in method.options:
      raise ValueError(f'{name} does not read {field.name}; leave {field.name}='
                       f'{value!r} out')
  if not 0 < options.density <= 1:
    raise ValueError(f'density is {options.density}; it is the share of a task vector '
                     'that is kept, above 0 and at most 1')
  if not np.isfinite(options.scale):
    raise ValueError(f'scale is {options.scale}; it must be a finite number')
  return method


def _check_same(first: Bundle, other: Bundle, is_base: bool) -> None:
  names = f'{first.source or "the first model"} and {other.source or "another"}'
  a, b = (paths.flatten(m.params) for m in (first, other))
  for path in sorted(a.keys() | b.keys()):
    shapes = [list(t[path].shape) if path in t else 'absent' for t in (a, b)]
    if shapes[0] != shapes[1]:
      raise ValueError(f'{names} differ in {path}: {shapes[0]} and {shapes[1]}; only '
                       'models of one architecture can be merged')
  for field in dataclasses.fields(first.cfg):
    values = [getattr(m.cfg, field.name) for m in (first, other)]
    if values[0] == values[1] or (is_base and field.name != 'backbone'):
      continue
    told = f'{names} differ in {_difference(field.name, *values)}'
    if field.name not in _FREE:
      raise ValueError(f'{told}; only models that compute alike can be merged')
    if field.name == 'max_length':
      warnings.warn(f'{told}; the first one\'s holds', stacklevel=4)
  if token := _other_token(first, other):
    raise ValueError(f'{names} have different tokenizers (first at {token}), so their '
                     'token vectors stand for different texts; transplant one '
                     'tokenizer into the other first')


def _difference(name: str, a: Any, b: Any) -> str:
  """The field, and within a dataclass of settings the one that differs."""
  if dataclasses.is_dataclass(a) and type(a) is type(b):
    for field in dataclasses.fields(a):
      inner = getattr(a, field.name), getattr(b, field.name)
      if inner[0] != inner[1]:
        return _difference(f'{name}.{field.name}', *inner)
  return f'{name}: {a!r:.60} and {b!r:.60}'


def _other_token(first: Bundle, other: Bundle) -> str:
  """A token that one tokenizer has at another place than the other; '': none."""
  folders = first.tokenizer_folder, other.tokenizer_folder
  if None in folders or folders[0] == folders[1]:
    return ''
  a, b = map(added_tokens.vocabulary, filter(None, folders))
  wrong = [t for t in a.keys() | b.keys() if a.get(t) != b.get(t)]
  token = min(wrong, key=lambda t: (a.get(t, b.get(t, 0)), t), default='')
  return f'{token!r}: id {a.get(token)} and {b.get(token)}' if wrong else ''


def _prompts(models: Sequence[Bundle]) -> dict[str, str]:
  """Prompts of all models by name; one that two spell differently is the first's."""
  found: dict[str, str] = {}
  for model in models:
    for name, text in model.prompts.items():
      if found.setdefault(name, text) != text:
        warnings.warn(f'the prompt {name!r} is {found[name]!r} in the first model and '
                      f'{text!r} in {model.source}; the first one\'s holds',
                      stacklevel=4)
  return found


def _of_whole(trees: Sequence[Mapping[str, types.Array]], count: int, options: Options
              ) -> np.ndarray:
  """Weights of a slerp whose vectors are all parameters one behind the other."""
  total: Any = 0.0
  for path in trees[0]:
    for tensors in _tensors(path, [t[path] for t in trees]):
      start = tensors[count] if len(tensors) > count else 0
      total = total + slerp.gram([x - start for x in tensors[:count]])
  return slerp.coefficients(
      total, slerp.shares(list(options.relative(count))))


def _tensors(path: str, leaves: Sequence[types.Array]) -> Iterator[list[np.ndarray]]:
  """The leaves as float64, layer by layer where they are stacked."""
  arrays = [np.asarray(jax.device_get(x)) for x in leaves]
  if not paths.is_stacked(path):
    yield [x.astype(np.float64) for x in arrays]
    return
  for layer in range(len(arrays[0])):
    yield [x[layer].astype(np.float64) for x in arrays]


def mapped(path: str, leaves: Sequence[types.Array],
           combine: Callable[[list[np.ndarray]], np.ndarray]) -> np.ndarray:
  """`combine` of every tensor of a parameter, in the first leaf's dtype."""
  first = leaves[0]
  out = np.empty(first.shape, first.dtype)
  slots = out if paths.is_stacked(path) else out[None]
  with np.errstate(over='ignore'):
    for slot, tensors in zip(slots, _tensors(path, leaves)):
      slot[...] = combine(tensors)
  if not np.isfinite(out.astype(np.float32)).all():
    raise ValueError(f'merged, {path} has values that {first.dtype} cannot hold or '
                     'that are not finite; choose smaller weights or scale')
  return out
