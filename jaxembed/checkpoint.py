"""Checkpoints of a run (Orbax): asynchronous, sharded, verified when read.

A folder per step has `params`, `opt_state`, `step` and maybe `ema`, apart, so that a
reader of the model does not pay for the optimiser. Orbax, which only this module and
`shares` import, renames it once it is complete; a sum over the bits of every part is
stored, and compared whenever it is read. Proven damage sets a checkpoint aside, an
error that may pass does not. No state with a number that is not finite is saved.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxembed import checksum, former, paths, types
from jaxembed.files import checked_json, damage, place, url, whole_json
from jaxembed.files.damage import Damaged

if TYPE_CHECKING:
  ocp: Any  # Orbax's annotations refuse paths and metadata that it takes
else:
  try:  # the v1 interface, and before it left `experimental`
    import orbax.checkpoint.v1 as ocp
  except ImportError:
    import orbax.checkpoint.experimental.v1 as ocp

_BEST = 'best.json'
# Devices with the same array write a slice each of so many bytes or more: for every
# slice of a small one a program is compiled and a chunk is written.
_SLICE = 1 << 20
_NONE = ('no checkpoint under {} can be read (tried steps {}); use a fresh workdir to '
         'start over')
Step = int | str | None  # a step, 'best' or, None, the newest


@dataclasses.dataclass
class _Kept:
  """Orbax's rule of what stays: the newest `keep`, the best one, and one to go back to.

  Whether the newest is any good is known once the step after it was finite; until then
  the one before it stays too.
  """

  keep: int
  best: int | None = None
  may_drop: Callable[[int], bool] = lambda step: True

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    newest = {c.step for c in checkpoints[-max(self.keep, 2):]}
    return [c.step in newest | {self.best} or not self.may_drop(c.step)
            for c in checkpoints]


class Checkpoints:
  """The checkpoints under a folder. A context manager: leaving waits for saves.

  may_drop(step): asked before one is removed.
  """

  def __init__(self, folder: str | pathlib.Path, *, keep: int = 2,
               may_drop: Callable[[int], bool] = lambda step: True):
    self.folder = url.local(folder).absolute()
    self._kept = _Kept(keep, (best(self.folder) or {}).get('step'), may_drop)
    if writes(self.folder):  # Orbax's own thread may outlive the program
      for left in self.folder.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(left, ignore_errors=True)
    self._aside: list[str] = []  # what to tell of it
    try:
      self._ckptr = self._opened()
    except Exception:  # Orbax reads all records of saving, and fails at one
      self._aside = _set_broken_records_aside(self.folder)
      if not self._aside:
        raise
      self._ckptr = self._opened()

  def _opened(self):
    return ocp.training.Checkpointer(
        self.folder, context=_context(place.is_staged(self.folder)),
        save_decision_policy=ocp.training.save_decision_policies
        .FixedIntervalPolicy(1),  # the loop decides when
        preservation_policy=self._kept)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # After an error that one is what should be read.
    with self._explained() if kind is None else contextlib.suppress(Exception):
      self._ckptr.close()

  def steps(self) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    return sorted(c.step for c in self._ckptr.checkpoints)

  def save(self, step: int, state: types.TrainState,
           position: dict[str, Any] | None = None) -> None:
    """Starts saving; returns once the arrays are copied off the devices.

    A step that is already there is left alone. Raises OSError as `wait` does, for
    the save before.

    Raises:
      FloatingPointError: a number of the state is not finite; nothing is saved.
    """
    if step in self.steps():
      return
    parts = _parts(state)
    marks, finite = checksum.of_parts(parts)
    if not finite:
      raise FloatingPointError(
          f'the state after step {step} holds numbers that are not finite and was not '
          f'saved; checkpoints of the steps {self.steps() or "none"} are there')
    mark = {'position': position or {}, 'fingerprints': marks}
    with self._explained():
      self._ckptr.save_checkpointables_async(step, parts, custom_metadata=mark)

  def wait(self) -> None:
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

  def keep_best(self, step: int, metric: str, score: float) -> None:
    """Marks the checkpoint of `step`, saved or being saved, as the best one."""
    self._kept.best = step
    if writes(self.folder):
      whole_json.write(self.folder / _BEST,
                       {'step': step, 'metric': metric, 'score': score})

  def trim(self) -> None:
    """Removes what stayed only while the run went on; to be called at its end."""
    self.wait()
    kept = {*self.steps()[-self._kept.keep:], self._kept.best}
    if writes(self.folder):
      for step in filter(self._kept.may_drop, set(self.steps()) - kept):
        shutil.rmtree(self.folder / str(step))
    self._ckptr.reload()

  def set_aside(self, step: int, name: str) -> str:
    """Renames a checkpoint, so that it is no longer used; returns its new name."""
    name = _rename(self.folder, step, name)
    self._ckptr.reload()
    return name

  @former.keywords(say='log')
  def restore(self, like: Callable[[int], types.TrainState], *,
              log: Callable[[str], None] = print
              ) -> tuple[types.TrainState, dict[str, Any]] | None:
    """The newest whole state in the shapes and shardings of `like(step)`.

    Returns (state, position), or None if there is no checkpoint. A damaged
    checkpoint is renamed to STEP.unreadable, which `log` is told.

    Raises:
      OSError: one cannot be read now, and perhaps can be later; nothing was changed.
      ValueError: checkpoints are there, and all are damaged; or the newest one
        holds other parameters than wanted.
    """
    steps = self.steps()
    for line in self._aside:
      log(line)
    for step in reversed(steps):
      wanted = like(step)

      def attempt(step=step, wanted=wanted):
        state, meta = self._load(step, wanted)
        _verify(_parts(state), meta)
        return state, meta['position']

      try:
        return damage.patiently(attempt, self.folder / str(step),
                                lambda step=step, w=wanted: self._refuse_other(step, w))
      except Damaged as e:
        name = self.set_aside(step, f'{step}.unreadable')
        log(f'checkpoint {self.folder}/{step} {e}; set aside as {name}, using the one '
            'before')
    if steps:
      raise ValueError(_NONE.format(self.folder, steps))
    return None

  def _refuse_other(self, step: int, wanted: types.TrainState):
    """Raises ValueError if the checkpoint is of another model or optimiser."""
    for part, what in (('params', 'model'), ('opt_state', 'optimiser'),
                       ('ema', 'set of running means')):
      if problem := self._mismatch(step, part, _parts(wanted).get(part)):
        raise ValueError(
            f'checkpoint {self.folder}/{step} belongs to another {what}: {problem}; '
            'use another workdir, or the config it was made with'
            + ('' if part == 'params' else
               ', or end the stage at this step and change it in a stage after it'))

  def _load(self, step: int, like: types.TrainState):
    parts = self._ckptr.load_checkpointables(step, _parts(like))
    state = types.TrainState(parts['step']['step'], parts['params'],
                             parts['opt_state'], parts.get('ema'))
    return state, self._ckptr.checkpointables_metadata(step).custom_metadata

  def _mismatch(self, step: int, part: str, wanted) -> str:
    """What differs between the shapes of a stored part and those wanted."""
    try:
      stored = self._ckptr.checkpointables_metadata(step).metadata
    except Exception:  # so damaged that even its index is gone
      return ''
    if stored is None or stored.get(part, {}) is None:
      return ''
    stored, wanted = _shapes(stored.get(part)), _shapes(wanted)
    diff = [f'{k}: stored {stored.get(k)}, wanted {wanted.get(k)}'
            for k in sorted(stored | wanted) if stored.get(k) != wanted.get(k)]
    more = f' (and {len(diff) - 3} more)' if len(diff) > 3 else ''
    return '; '.join(diff[:3]) + more


def writes(folder: str | os.PathLike) -> bool:
  """Whether this process writes the files of a run in `folder`: process 0, or each
  where each has a copy of a URL for itself."""
  return jax.process_index() == 0 or place.is_staged(folder)


def _context(own_disk: bool = False) -> Any:
  """Orbax's settings. Numbers are saved as they are: trained float32 shrinks by less
  than a tenth in zstd, which would take most of the time of a save and of a restore.

  own_disk: every process saves its share in a folder of its own.
  """
  found = ocp.Context()
  found.array.saving.use_compression = False
  found.array.saving.min_slice_bytes_for_replica_parallel = _SLICE
  if own_disk and jax.process_count() > 1:
    found.multiprocessing.primary_host = jax.process_index()
    found.array.saving.array_metadata_store = None  # it asks for those of all
  return found


def _rename(folder: pathlib.Path, step: int, name: str) -> str:
  if taken := len(list(folder.glob(f'{name}*'))):
    name = f'{name}_{taken + 1}'
  if writes(folder):
    (folder / str(step)).rename(folder / name)
  return name


def _set_broken_records_aside(folder: pathlib.Path) -> list[str]:
  """Renames checkpoints whose record of saving is damaged, and says so of each."""
  broken = []
  for step in steps(folder):
    path = folder / str(step)
    try:
      damage.patiently(lambda path=path: ocp.checkpointables_metadata(path), path)
    except Damaged as e:
      broken.append((step, e))
  if broken and len(broken) == len(steps(folder)):
    raise ValueError(_NONE.format(folder, steps(folder)))
  return [f'checkpoint {folder}/{step} {e}; set aside as '
          f'{_rename(folder, step, f"{step}.unreadable")}' for step, e in broken]


def _parts(state: types.TrainState) -> dict[str, Any]:
  parts = {'params': state.params, 'opt_state': state.opt_state,
           'step': {'step': state.step}}
  return parts if state.ema is None else parts | {'ema': state.ema}


def _shapes(tree) -> dict[str, tuple[int, ...]]:
  return {path: tuple(leaf.shape) for path, leaf in paths.flatten(tree).items()}


def _verify(parts: dict[str, Any], meta):
  """Raises Damaged unless the parts have the sums they were saved with.

  meta: as stored; before there were sums of parts there was one over all of a state.
  """
  if not isinstance(meta, dict) or not {'fingerprints', 'fingerprint'} & meta.keys():
    raise Damaged('has no fingerprint (damaged on disk?)')
  marks = meta.get('fingerprints')
  if marks is not None:
    same = isinstance(marks, dict) and all(
        marks.get(k) == v for k, v in checksum.of_parts(parts)[0].items())
  else:
    same = 'opt_state' not in parts or meta['fingerprint'] == checksum.of_tree(
        types.TrainState(parts['step']['step'], parts['params'], parts['opt_state'],
                         parts.get('ema')))
  if not same:
    raise Damaged('does not match its own fingerprint (damaged on disk?)')


def steps(folder: str | pathlib.Path) -> list[int]:
  """Steps of the checkpoints under `folder`, ascending."""
  return sorted(int(p.name) for p in url.local(folder).glob('*')
                if p.name.isdigit())


def best(folder: str | pathlib.Path) -> dict[str, Any] | None:
  """{'step', 'metric', 'score'} of the checkpoint that scored best, if it is there."""
  file = url.local(folder) / _BEST
  if not file.is_file():
    return None
  found = checked_json.read(file, finite=False)
  return found if found.get('step') in steps(folder) else None


def resolve(folder: str | pathlib.Path, step: Step = None) -> int:
  """The step that `step` means under `folder`: itself, the best one, the newest.

  Raises:
    FileNotFoundError: no such checkpoint.
  """
  there = steps(folder)
  if step == 'best':
    if (found := best(folder)) is None:
      raise FileNotFoundError(
          f'no best checkpoint under {folder}: a run keeps one when it evaluates and '
          f'its checkpoint.best names a score; there are the steps {there or "none"}')
    return found['step']
  wanted = max(there, default=None) if step is None else step
  if wanted not in there:
    raise FileNotFoundError(f'no checkpoint {"" if step is None else step} under '
                            f'{folder}; there are: {there or "none"}')
  return wanted


def save_params(folder: str | pathlib.Path, step: int, params: types.Params) -> None:
  """A checkpoint of parameters alone, for `load_params`.

  Raises:
    FileExistsError: that step is there.
    FloatingPointError: a parameter is not finite.
  """
  target = url.local(folder).absolute() / str(step)
  if target.exists():
    raise FileExistsError(f'{target} is there; choose another folder')
  marks, finite = checksum.of_parts({'params': params})
  if not finite:
    raise FloatingPointError(f'{target}: parameters are not finite; nothing was saved')
  with _context():
    ocp.save_checkpointables(target, {'params': params},
                             custom_metadata={'fingerprints': marks})


def load_params(folder: str | pathlib.Path, step: Step = None
                ) -> tuple[types.Params, int]:
  """(parameters, step) of the newest checkpoint under `folder`, or of `step`.

  Running means stand in for the parameters that have them. Arrays come back on the
  first device as they were saved.

  Raises:
    FileNotFoundError: no such checkpoint.
    Damaged: it is not what was saved.
    OSError: it cannot be read now.
  """
  folder = url.local(folder).absolute()
  step = resolve(folder, step)
  target = folder / str(step)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def read():
    stored = ocp.checkpointables_metadata(target)
    wanted = {name: jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=one),
        stored.metadata[name]) for name in ('params', 'ema') if name in stored.metadata}
    parts = ocp.load_checkpointables(target, wanted)
    _verify(parts, stored.custom_metadata)
    return parts

  try:
    parts = damage.patiently(read, target)
  except Damaged as e:
    others = [s for s in steps(folder) if s != step]
    remedy = (f'use step {others[-1]} (step={others[-1]}, --step={others[-1]})'
              if others else 'there is no other; copy it again from where it is whole')
    raise Damaged(f'checkpoint {target} {e}; {remedy}') from e
  state = types.TrainState(jnp.int32(step), parts['params'], None, parts.get('ema'))
  return state.averaged, step
