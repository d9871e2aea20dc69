"""What saving costs a run, and how long restoring takes beside reading the bytes.

Saving: twenty steps of all-MiniLM-L6-v2 (16 pairs, all parameters, AdamW) that begin
with a save and wait for it at their end, as in a run that saves every 20 steps, and
twenty without, in turns, once every save replaces an older one. The goal is at most 3%
of their time.

Restoring: a state of about 2 GB beside reading the same files into memory, both out of
the page cache, in turns; the goal is at most 1.2 times. Restoring compares every sum.
"""

from collections.abc import Sequence
import os
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from jaxembed import checkpoint, types

from . import train

_EVERY = 20
_KEPT = 2  # checkpoints that stay


def run(repeats: int, small: bool) -> list[dict]:
  return [_saving(repeats, small), _restoring(repeats, small)]


def _saving(repeats: int, small: bool) -> dict:
  update, state, batch = train.prepared(4 if small else 16)
  saved_at = 0

  def block(saved: checkpoint.Checkpoints | None, steps: int = _EVERY) -> float:
    """Seconds of so many steps; the numbers of one are read while the next one runs."""
    nonlocal state, saved_at
    begun, before = time.perf_counter(), None
    if saved:
      saved_at += 1
      saved.save(saved_at, state)
    for _ in range(2 if small else steps):
      state, values = update(state, batch)
      if before is not None:
        float(before)
      before = values['train/loss']
    jax.block_until_ready(state)
    if saved:
      saved.wait()
    return time.perf_counter() - begun

  with (tempfile.TemporaryDirectory() as name,
        checkpoint.Checkpoints(name, keep=_KEPT) as saved):
    for _ in range(_KEPT + 2):  # compiled; from then on each save replaces one
      block(saved, 2)
    pairs = []
    for i in range(2 * repeats + 1):  # either goes first in turn: drift cancels
      took = {to: block(to) for to in ((None, saved) if i % 2 else (saved, None))}
      pairs.append((took[None], took[saved]))
  return _row(f'{_EVERY} steps with a save of {_bytes(state) / 1e9:.2f} GB',
              'without', pairs)


def _restoring(repeats: int, small: bool) -> dict:
  state = _state((2 << 20 if small else 2 << 30) // 12, 24)
  like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(
      a.shape, a.dtype, sharding=a.sharding), state)
  size = _bytes(state)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    with checkpoint.Checkpoints(folder) as saved:
      saved.save(1, state)
      saved.wait()
      del state
      files = [p for p in folder.rglob('*') if p.is_file()]

      def restore():
        jax.block_until_ready(saved.restore(lambda _: like))

      def read():
        for path in files:
          path.read_bytes()

      pairs = [tuple(_out_of_the_cache(files, f) for f in (read, restore))
               for _ in range(2 * repeats + 1)]
  return _row(f'restore {size / 1e9:.2f} GB', 'reading', pairs)


def _row(what: str, beside: str, pairs: Sequence[tuple[float, ...]]) -> dict:
  other, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
  return {'what': what, 'seconds': ours, 'beside': f'{beside} {other:.2f}',
          'ratio': statistics.median(b / a for a, b in pairs),
          'ratios': ' '.join(f'{b / a:.3f}' for a, b in pairs)}


def _state(numbers: int, arrays: int) -> types.TrainState:
  """A state of so many random parameters, with the moments of AdamW."""
  each = max(numbers // arrays // 1024, 1)
  tree = lambda seed: {f'layer_{i}': jax.random.normal(
      jax.random.fold_in(jax.random.key(seed), i), (each, 1024))
                       for i in range(arrays)}
  return types.TrainState(jnp.int32(0), tree(0), (tree(1), tree(2)))


def _bytes(state: types.TrainState) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(state))


def _out_of_the_cache(files: list[pathlib.Path], action) -> float:
  """Seconds of `action()`, no byte of the files in the page cache before it."""
  for path in files:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
  begun = time.perf_counter()
  action()
  return time.perf_counter() - begun
