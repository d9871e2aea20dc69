"""Input validation of the losses: shapes, dtypes and finite values."""

import chex
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from jaxembed import config, types
from jaxembed.losses import temperature, vectors

_MAY_BE_ABSENT = 'temperature', 'score', 'known'
_TEACHER = 'query_teacher', 'passage_teacher'


def inputs(query: types.Array, passage: types.Array, pairing: types.Pairing,
           cfg: config.LossConfig) -> None:
  """Raises ValueError on what does not fit, and, outside jit, on embeddings that are
  not finite, naming their rows."""
  chex.assert_rank([query, passage], 2)
  if query.shape[1] != passage.shape[1]:
    raise ValueError(f'queries are {query.shape[1]} wide and passages '
                     f'{passage.shape[1]}; one model must embed both')
  if cfg.widths and max(cfg.widths) > query.shape[1]:
    raise ValueError(f'widths {cfg.widths} exceed the embedding width '
                     f'{query.shape[1]}; drop those above it')
  _pairing(pairing, query.shape[0], passage.shape[0])
  temperature.check(pairing.temperature)
  _scores(pairing.score)
  _teacher(pairing, query.shape[0], passage.shape[0])
  for name, x in (('query', query), ('passage', passage)):
    if x.dtype != jnp.float32:
      raise ValueError(f'{name} embeddings are {x.dtype}; give float32 (the '
                       'products may still be bfloat16: LossConfig.dtype)')
    if not isinstance(x, Tracer):
      bad = vectors.unusable(np.asarray(x), cfg)
      if name == 'passage' and not isinstance(pairing.owner, Tracer):
        bad &= np.asarray(pairing.owner) >= 0
      bad = np.flatnonzero(bad)
      if bad.size:
        raise ValueError(
            f'{name} embeddings have NaN, inf or numbers beyond all use in {bad.size} '
            f'rows, first {bad[:8].tolist()}; look at those texts and at the learning '
            'rate')


def _teacher(pairing: types.Pairing, queries: int, passages: int):
  """Raises ValueError on a teacher's vectors that do not fit, or are infinite."""
  found = [getattr(pairing, name) for name in _TEACHER]
  if all(x is None for x in found):
    return
  if any(x is None for x in found):
    raise ValueError(f'of {" and ".join(_TEACHER)} one is None; give both or neither')
  for name, x, rows in zip(_TEACHER, found, (queries, passages), strict=True):
    if x.ndim != 2 or x.shape != (rows, found[0].shape[-1]) or x.dtype != np.float32:
      raise ValueError(f'pairing.{name} is {x.dtype} {x.shape}; it must be float32 '
                       f'({rows}, {found[0].shape[-1]})')
    if not isinstance(x, Tracer) and np.isinf(np.asarray(x)).any():
      raise ValueError(f'pairing.{name} has infinite numbers; look at the teacher')


def _scores(score: types.Array | None):
  """Raises ValueError, outside jit, on a teacher's scores that are infinite."""
  if score is None or isinstance(score, Tracer):
    return
  if bad := np.flatnonzero(np.isinf(np.asarray(score))).tolist():
    raise ValueError(f'pairing.score is infinite for {len(bad)} passages, first '
                     f'{bad[:8]}; give finite scores, or NaN for none')


def _pairing(pairing: types.Pairing, queries: int, passages: int):
  rows = {'query_id': (queries, np.int32), 'group': (queries, np.int32),
          'in_batch': (queries, np.bool_), 'owner': (passages, np.int32),
          'is_positive': (passages, np.bool_), 'passage_id': (passages, np.int32),
          'temperature': (queries, np.float32), 'score': (passages, np.float32),
          'known': (queries, np.int32)}
  for name, (size, dtype) in rows.items():
    x = getattr(pairing, name)
    if x is None:
      if name in _MAY_BE_ABSENT:
        continue
      raise ValueError(f'pairing.{name} is None; every batch has one')
    want = (size, *x.shape[1:2]) if name == 'known' else (size,)
    if x.shape != want or (name == 'known' and x.ndim != 2):
      raise ValueError(f'pairing.{name} has shape {x.shape}, not '
                       f'{f"({size}, P)" if name == "known" else want}')
    if x.dtype != dtype:
      raise ValueError(f'pairing.{name} is {x.dtype}; it must be {np.dtype(dtype)}')
