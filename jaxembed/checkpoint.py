"""Checkpoints of a run: asynchronous, sharded, and never half there.

The only place that imports Orbax. A checkpoint is one folder per step with the
parts `params`, `opt_state`, `step` and, if kept, `ema` apart from each other, so
that a reader of the model does not pay for the optimiser. Orbax writes into a
temporary folder and renames it, so what is listed is complete; a sum over the bits
of every array is stored beside it. What cannot be read or does not add up all the
same (a damaged disk) is reported, set aside, and the one before it is used.
"""

from collections.abc import Callable
import contextlib
import pathlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxembed import types

try:
  import orbax.checkpoint.v1 as ocp
except ImportError:  # releases before the v1 interface left `experimental`
  import orbax.checkpoint.experimental.v1 as ocp


class Checkpoints:
  """The checkpoints under a folder. A context manager: leaving waits for saves."""

  def __init__(self, folder: str | pathlib.Path, *, keep: int = 2):
    self.folder = pathlib.Path(folder).absolute()
    self._ckptr = ocp.training.Checkpointer(
        self.folder,
        save_decision_policy=ocp.training.save_decision_policies
        .FixedIntervalPolicy(1),  # the loop decides when
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if kind is None:
      with self._explained():
        self._ckptr.close()
    else:  # what went wrong before is what should be read
      with contextlib.suppress(Exception):
        self._ckptr.close()

  def steps(self) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    return sorted(c.step for c in self._ckptr.checkpoints)

  def save(self, step: int, state: types.TrainState, position: dict[str, Any]):
    """Starts saving; returns once the arrays are copied off the devices.

    A step that is already there is left alone. Raises OSError as `wait` does, for
    the save before.
    """
    if step in self.steps():
      return
    mark = {'position': position, 'fingerprint': fingerprint(state)}
    with self._explained():
      self._ckptr.save_checkpointables_async(
          step, _parts(state), custom_metadata=mark)

  def wait(self):
    """Blocks until the save in flight is on disk.

    Raises:
      OSError: it could not be written; the checkpoints before it are whole.
    """
    with self._explained():
      self._ckptr.wait()

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except Exception as e:  # a full disk has many types, through Orbax
      raise OSError(
          f'a checkpoint could not be saved under {self.folder} ({str(e)[:300]}); '
          f'steps {steps(self.folder) or "none"} are there whole. If the disk is '
          'full make room; the same command continues from the newest') from e

  def restore(self, like: Callable[[int], types.TrainState], *,
              say: Callable[[str], None] = print
              ) -> tuple[types.TrainState, dict[str, Any]] | None:
    """The newest readable state in the shapes and shardings of `like(step)`.

    Returns (state, position), or None if there is no checkpoint. An unreadable
    checkpoint is renamed to STEP.unreadable, which `say` is told.

    Raises:
      ValueError: checkpoints are there, and none can be read; or the newest one
        holds other parameters than wanted.
    """
    steps = self.steps()
    for step in reversed(steps):
      wanted = like(step)
      try:
        state, meta = self._load(step, wanted)
      except Exception as e:  # Orbax raises many types for damaged files
        problem = self._mismatch(step, wanted.params)
        if problem:
          raise ValueError(
              f'checkpoint {self.folder}/{step} belongs to another model: '
              f'{problem}; use another workdir, or the config it was made with'
          ) from e
        reason = f'cannot be read ({type(e).__name__}: {str(e)[:160]})'
      else:
        if fingerprint(state) == meta['fingerprint']:
          return state, meta['position']
        reason = 'does not match its own fingerprint (damaged on disk?)'
      say(f'checkpoint {self.folder}/{step} {reason}; set aside as '
          f'{step}.unreadable, using the one before')
      if jax.process_index() == 0:
        (self.folder / str(step)).rename(self.folder / f'{step}.unreadable')
      self._ckptr.reload()
    if steps:
      raise ValueError(f'no checkpoint under {self.folder} can be read '
                       f'(tried steps {steps}); use a fresh workdir to start over')
    return None

  def _load(self, step: int, like: types.TrainState):
    parts = self._ckptr.load_checkpointables(step, _parts(like))
    state = types.TrainState(parts['step']['step'], parts['params'],
                             parts['opt_state'], parts.get('ema'))
    return state, self._ckptr.checkpointables_metadata(step).custom_metadata

  def _mismatch(self, step: int, params) -> str:
    """What differs between the stored parameters' shapes and those wanted."""
    try:
      stored = self._ckptr.checkpointables_metadata(step).metadata['params']
    except Exception:  # so damaged that even its index is gone
      return ''
    if stored is None:
      return ''
    stored, wanted = _shapes(stored), _shapes(params)
    diff = [f'{k}: stored {stored.get(k)}, wanted {wanted.get(k)}'
            for k in sorted(stored | wanted) if stored.get(k) != wanted.get(k)]
    more = f' (and {len(diff) - 3} more)' if len(diff) > 3 else ''
    return '; '.join(diff[:3]) + more


def _parts(state: types.TrainState) -> dict[str, Any]:
  parts = {'params': state.params, 'opt_state': state.opt_state,
           'step': {'step': state.step}}
  return parts if state.ema is None else parts | {'ema': state.ema}


def _shapes(tree) -> dict[str, tuple[int, ...]]:
  return {'/'.join(str(getattr(k, 'key', k)) for k in path): tuple(leaf.shape)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def fingerprint(tree) -> int:
  """Order-independent sum over the bits of every array, the same on any mesh."""
  return int(_fingerprint(jax.tree.leaves(tree)))


@jax.jit
def _fingerprint(leaves):
  total = jnp.uint32(0)
  for x in leaves:
    bits = x.astype(jnp.uint8) if x.dtype == bool else lax.bitcast_convert_type(
        x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
    total = total * jnp.uint32(31) + jnp.sum(bits.astype(jnp.uint32))
  return total


def steps(folder: str | pathlib.Path) -> list[int]:
  """Steps of the checkpoints under `folder`, ascending."""
  return sorted(int(p.name) for p in pathlib.Path(folder).glob('*')
                if p.name.isdigit())


def save_params(folder: str | pathlib.Path, step: int, params: types.Params):
  """A checkpoint of parameters alone, for `load_params`.

  Raises:
    FileExistsError: that step is there.
  """
  target = pathlib.Path(folder).absolute() / str(step)
  if target.exists():
    raise FileExistsError(f'{target} is there; choose another folder')
  ocp.save_checkpointables(target, {'params': params})


def load_params(folder: str | pathlib.Path, step: int | None = None
                ) -> tuple[types.Params, int]:
  """(parameters, step) of the newest checkpoint under `folder`, or of `step`.

  Running means stand in for the parameters that have them. Arrays come back on the
  first device as they were saved.

  Raises:
    FileNotFoundError: no such checkpoint.
  """
  folder = pathlib.Path(folder).absolute()
  there = steps(folder)
  step = step if step is not None else max(there, default=None)
  if step not in there:
    raise FileNotFoundError(
        f'no checkpoint {"" if step is None else step} under {folder}; '
        f'there are: {there or "none"}')
  stored = ocp.checkpointables_metadata(folder / str(step)).metadata
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {name: jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=one), stored[name])
      for name in ('params', 'ema') if name in stored}
  parts = ocp.load_checkpointables(folder / str(step), wanted)
  state = types.TrainState(step, parts['params'], None, parts.get('ema'))
  return state.averaged, step
