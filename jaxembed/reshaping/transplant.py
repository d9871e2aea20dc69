"""Another model's tokenizer, with token vectors made by orthogonal matching pursuit.

Goddard and Fernandes Neto 2025 (arXiv 2506.06607): a token that both vocabularies
have keeps its vector. Another is written, in the other model's space, as a sparse
combination of tokens that both have, and the same combination of their vectors here
is its vector. Nothing is trained.
"""

import os
import pathlib

import jax
import numpy as np

from jaxembed import paths
from jaxembed.bundle import Bundle
from jaxembed.data import added_tokens
from jaxembed.files import carried, url
from jaxembed.reshaping import vocabulary

# Tokens that are approximated together: bounds the memory of their products.
_CHUNK = 512
# Of a residual, relative to its vector: what is left is rounding.
_NOTHING = 1e-12


def transplant(model: Bundle, donor: Bundle, folder: str | os.PathLike,
               atoms: int = 64) -> Bundle:
  """`model` that reads texts with the tokenizer of `donor`.

  Special tokens take the vectors of those of the same role (padding, first, last,
  unknown, mask), however they are spelt.

  Args:
    model: whose weights are kept, its table of tokens aside.
    donor: any model with a tokenizer and token vectors; the rest of it is not used.
    folder: where the tokenizer's files go, new or empty.
    atoms: shared tokens that a new one is made of, at most.

  Raises:
    ValueError: no token is shared, or positions that hang on the id of the padding
      token, which would be another.
    FileNotFoundError: one of them has no tokenizer.
  """
  folders = [f for m in (model, donor) if (f := m.tokenizer_folder) is not None]
  if len(folders) < 2:
    raise FileNotFoundError('a transplant needs the tokenizers of both models')
  ours, theirs = (np.asarray(jax.device_get(paths.flatten(m.params)[vocabulary.TABLE]))
                  for m in (model, donor))
  known, wanted = (added_tokens.spellings(f) for f in folders)
  known = {key: i for i, key in sorted(known.items(), reverse=True) if i < len(ours)}
  wanted = {i: key for i, key in wanted.items() if i < len(theirs)}
  _check_padding(model, donor)
  shared = {i: known[key] for i, key in wanted.items() if key in known}
  if not shared:
    raise ValueError(f'{model.source} and {donor.source} share no token; their '
                     'tokenizers spell words differently')
  own = sorted(wanted.keys() - shared.keys())
  places = np.array(sorted(shared))
  here = ours[[shared[i] for i in places]].astype(np.float64)
  rows = dict(zip(places.tolist(), ours[[shared[i] for i in places]]))
  found, weights = pursue(theirs[own].astype(np.float64),
                          theirs[places].astype(np.float64), atoms)
  for i, at, w in zip(own, found, weights):
    rows[i] = w @ here[at]
  url.local(folder).mkdir(parents=True, exist_ok=True)
  carried.copy(folders[1], folder)
  return vocabulary.with_rows(model, rows, max(rows) + 1, pathlib.Path(folder))


def pursue(targets: np.ndarray, dictionary: np.ndarray, atoms: int
           ) -> tuple[np.ndarray, np.ndarray]:
  """Orthogonal matching pursuit (Pati et al. 1993) of every target.

  Each round takes the row of the dictionary that is most nearly parallel to what is
  left, and fits all that were taken by least squares.

  Args:
    targets: [N,D] float64.
    dictionary: [S,D] float64; rows of zeros are never taken.
    atoms: rows per target, at most S and D.

  Returns:
    Rows taken [N,K] int64 and their weights [N,K] float64, 0 once nothing is left.
  """
  atoms = min(atoms, *dictionary.shape)
  norms = np.linalg.norm(dictionary, axis=1)
  unit = dictionary / np.where(norms > 0, norms, 1)[:, None]
  parts = [_pursue(targets[i:i + _CHUNK], dictionary, unit, atoms)
           for i in range(0, max(len(targets), 1), _CHUNK)]
  taken, weights = zip(*parts)
  return np.concatenate(taken), np.concatenate(weights)


def _pursue(x, dictionary, unit, atoms: int):
  """`pursue` of one chunk, by Gram-Schmidt: taken rows are basis^T triangle."""
  count, width = x.shape
  each = np.arange(count)
  taken = np.zeros((count, atoms), np.int64)
  basis = np.zeros((count, atoms, width))
  triangle = np.zeros((count, atoms, atoms))
  part = np.zeros((count, atoms))
  left, sizes = x.copy(), np.linalg.norm(x, axis=1)
  free = np.ones((count, len(unit)), bool)
  for k in range(atoms):
    near = np.where(free, np.abs(left @ unit.T), -1)
    best = near.argmax(1)
    free[each, best] = False
    row = dictionary[best]
    inner = np.zeros((count, k))
    rest = row
    for _ in range(2):  # twice is enough for orthogonality to rounding
      step = np.einsum('nkd,nd->nk', basis[:, :k], rest)
      rest = rest - np.einsum('nkd,nk->nd', basis[:, :k], step)
      inner = inner + step
    size = np.linalg.norm(rest, axis=1)
    live = (np.linalg.norm(left, axis=1) > _NOTHING * sizes) & (
        size > _NOTHING * np.linalg.norm(row, axis=1)) & (near[each, best] > 0)
    basis[:, k] = np.where(live[:, None], rest / np.where(size > 0, size, 1)[:, None],
                           0)
    triangle[:, :k, k] = np.where(live[:, None], inner, 0)
    triangle[:, k, k] = np.where(live, size, 1)
    taken[:, k] = np.where(live, best, 0)
    part[:, k] = np.einsum('nd,nd->n', basis[:, k], left)
    left = left - part[:, k, None] * basis[:, k]
  return taken, np.linalg.solve(triangle, part[..., None])[..., 0]


def _check_padding(model: Bundle, donor: Bundle) -> None:
  """Raises ValueError where positions are counted from a padding id that changes."""
  offset = model.cfg.backbone.position_offset
  if not offset:
    return
  now = donor.load_tokenizer().pad_id
  if now != offset - 1:
    raise ValueError(f'{model.cfg.backbone.family} counts positions from its padding '
                     f'id {offset - 1}, and the tokenizer of {donor.source} pads with '
                     f'{now}; choose one that pads with {offset - 1}')
