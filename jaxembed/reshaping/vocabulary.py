"""New tokens: added to the tokenizer, with vectors to begin training from."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib

import jax
import numpy as np

from jaxembed import paths
from jaxembed.bundle import Bundle
from jaxembed.data import added_tokens
from jaxembed.files import url

TABLE = 'backbone/embed/token'
INITS = ('pieces', 'mean', 'hull')


def add(model: Bundle, tokens: Sequence[str], folder: str | os.PathLike,
        init: str = 'pieces', *, special: bool = False, seed: int = 0) -> Bundle:
  """`model` with new tokens, whose tokenizer lies in the new or empty `folder`.

  Texts without the tokens keep their vectors bit for bit.

  Args:
    tokens: as they stand in texts.
    folder: where the tokenizer's files go.
    init: of their vectors, all in the convex hull of those that are there.
      pieces: the mean of the tokens that the text was split into until now.
      mean: the mean of the whole vocabulary (Hewitt 2021).
      hull: a random convex combination of the whole vocabulary, drawn from a
        symmetric Dirichlet distribution: near the mean, and no two alike.
    special: whether they are found before texts are normalised, as [CLS] is.
    seed: of hull.

  Raises:
    ValueError: a token that is known already, empty or named twice; an unknown init.
    FileNotFoundError: the model has no tokenizer.
  """
  if init not in INITS:
    raise ValueError(f'init {init!r} is unknown; choose one of {", ".join(INITS)}')
  if not tokens:
    raise ValueError('there is no token to add')
  source = _tokenizer(model)
  known = sorted(set(added_tokens.vocabulary(source).values()))
  pieces = added_tokens.pieces(source, tokens)
  url.local(folder).mkdir(parents=True, exist_ok=True)
  ids = added_tokens.add(source, folder, tokens, special)
  table = np.asarray(jax.device_get(paths.flatten(model.params)[TABLE]))
  known = [i for i in known if i < len(table)]
  rows = table[known].astype(np.float64)
  rng = np.random.default_rng(seed)
  new = {}
  for token, own in zip(tokens, pieces):
    own = [i for i in own if i < len(table)]
    if init == 'hull':
      weights = rng.dirichlet(np.ones(len(rows)))
      new[ids[token]] = weights @ rows
    else:
      new[ids[token]] = (table[own].astype(np.float64) if own and init == 'pieces'
                         else rows).mean(0)
  return with_rows(model, new, max(len(table), max(ids.values()) + 1),
                   pathlib.Path(folder))


def for_tasks(model: Bundle, tasks: Mapping[str, str], folder: str | os.PathLike,
              init: str = 'mean') -> Bundle:
  """`model` with a special token per task, which is the prompt of the task's name.

  tasks: name -> token, such as {'sts': '[STS]'}. Raises as `add`.
  """
  model = add(model, list(tasks.values()), folder, init, special=True)
  return model.with_prompts(tasks, None)


def with_rows(model: Bundle, rows: Mapping[int, np.ndarray], size: int,
              folder: pathlib.Path) -> Bundle:
  """`model` with `rows` in its token table of `size`, and the tokenizer of `folder`.

  Rows that nothing gives and that were not there are zero.
  """
  flat = paths.flatten(model.params)
  before = np.asarray(jax.device_get(flat[TABLE]))
  table = np.zeros((size, *before.shape[1:]), before.dtype)
  table[:min(size, len(before))] = before[:size]
  for i, row in rows.items():
    table[i] = row
  cfg = dataclasses.replace(model.cfg, backbone=dataclasses.replace(
      model.cfg.backbone, vocab_size=size))
  return dataclasses.replace(
      model, params=paths.unflatten({**flat, TABLE: table}), cfg=cfg, base='',
      tokenizer_folder=folder, original=None)


def _tokenizer(model: Bundle) -> pathlib.Path:
  if model.tokenizer_folder is None:
    raise FileNotFoundError(f'{model.source or "the model"} has no tokenizer')
  return model.tokenizer_folder
