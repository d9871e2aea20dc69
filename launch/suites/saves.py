"""What saving costs a run, and how long restoring takes beside reading the bytes.

Saving: updates of a MiniLM-sized model, all trained with AdamW, with a save every 20
steps and with none, in turns; the goal is at most 3% of the time of a step. The last
save is waited for within the time.

Restoring: a state of about 2 GB in a fresh process, its files out of the page cache,
beside reading the same files; the goal is at most 1.2 times.
"""

import contextlib
import os
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from jaxembed import checkpoint, types

_EVERY = 20


def run(repeats: int, small: bool) -> list[dict]:
  return [*_saving(repeats, small), *_restoring(repeats, small)]


def _state(numbers: int, arrays: int) -> types.TrainState:
  """A state of so many random parameters, with the moments of AdamW."""
  each = max(numbers // arrays // 1024, 1)
  tree = lambda seed: {f'layer_{i}': jax.random.normal(
      jax.random.fold_in(jax.random.key(seed), i), (each, 1024))
                       for i in range(arrays)}
  return types.TrainState(jnp.int32(0), tree(0), (tree(1), tree(2)))


def _saving(repeats: int, small: bool):
  size = 1 << (10 if small else 11)
  steps = _EVERY * (1 if small else 2)
  state = _state(1 << 20 if small else 22 << 20, 12)
  x = jax.random.normal(jax.random.key(9), (size, size))

  @jax.jit
  def update(state, x):
    """As much work as a step: products, and every parameter and moment anew."""
    for _ in range(2 if small else 40):
      x = jnp.tanh(x @ x / size)
    moved = jax.tree.map(lambda p: p * 0.999 + x[0, 0] * 1e-6,
                         (state.params, state.opt_state))
    return types.TrainState(state.step + 1, *moved), x

  def steps_of(folder: pathlib.Path | None) -> float:
    now, y = state, x
    with (checkpoint.Checkpoints(folder, keep=2) if folder
          else contextlib.nullcontext()) as saved:
      begun = time.perf_counter()
      for i in range(1, steps + 1):
        now, y = update(now, y)
        jax.block_until_ready(y)
        if saved and i % _EVERY == 0:
          saved.save(i, now)
      if saved:
        saved.wait()
      return (time.perf_counter() - begun) / steps

  jax.block_until_ready(update(state, x))
  with tempfile.TemporaryDirectory() as name:
    steps_of(pathlib.Path(name) / 'warm')
    pairs = [(steps_of(None), steps_of(pathlib.Path(name) / f'{i}'))
             for i in range(repeats)]
  without, with_ = (statistics.median(p[i] for p in pairs) for i in (0, 1))
  yield {'what': f'step, a save of {_bytes(state) / 1e9:.2f} GB every {_EVERY}',
         'seconds': with_, 'beside': without, 'ratio': statistics.median(
             b / a for a, b in pairs)}


def _restoring(repeats: int, small: bool):
  state = _state((2 << 20 if small else 2 << 30) // 12, 24)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    with checkpoint.Checkpoints(folder) as saved:
      saved.save(1, state)
      saved.wait()
      like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(
          a.shape, a.dtype, sharding=a.sharding), state)
      pairs = []
      for _ in range(repeats):
        _forget(folder)
        begun = time.perf_counter()
        size = sum(len(p.read_bytes()) for p in folder.rglob('*') if p.is_file())
        read = time.perf_counter() - begun
        _forget(folder)
        begun = time.perf_counter()
        jax.block_until_ready(saved.restore(lambda _: like))
        pairs.append((read, time.perf_counter() - begun))
  reading, restoring = (statistics.median(p[i] for p in pairs) for i in (0, 1))
  yield {'what': f'restore {_bytes(state) / 1e9:.2f} GB ({size / 1e9:.2f} on disk)',
         'seconds': restoring, 'beside': reading,
         'ratio': statistics.median(b / a for a, b in pairs)}


def _bytes(state: types.TrainState) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(state))


def _forget(folder: pathlib.Path) -> None:
  """Takes the files of a folder out of the page cache."""
  os.sync()
  for path in folder.rglob('*'):
    if path.is_file():
      file = os.open(path, os.O_RDONLY)
      os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
      os.close(file)
