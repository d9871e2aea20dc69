"""Manifest of a run: configuration, data fingerprints, versions of every start.

    config   the resolved experiment, as at the first start
    data     stages[I]/SOURCE -> rows and sha256, of what is trained on now
    starts   one record per start and resume: versions, code, mesh, machines; what this
             start changed, with what was before; `topology`, where devices, mesh or
             processes are others from this step on; the error that ended it, if any

config never changes once a step is done; starts grows. launch/train.py takes the file
as its --config.
"""

from collections.abc import Sequence
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

from jaxembed import config, data
from jaxembed.files import checked_json, place, whole_json
from jaxembed.train import changes
from jaxembed.train.stages import stages

_PACKAGES = ('jaxembed', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
             'tokenizers', 'grain')


def record(folder: pathlib.Path, cfg: config.Config, mesh: jax.sharding.Mesh, step: int,
           *, changed: Sequence[str] = (), extend: bool = False,
           mixtures: Sequence[data.Mixture] | None = None) -> list[str]:
  """Writes folder/manifest.json, or adds this start at `step` to it.

  changed: what differs from the configuration before. extend: other data is asked for.
  mixtures: of every stage; None: they are opened here.
  Returns what differs between this start and the one it follows or repeats.

  Raises:
    ValueError: the data is not that of the manifest here, or of cfg.repeats. It may be
      another while no step is done, for stages that have not begun, and after a row
      that could not be used had ended the run.
  """
  path = folder / 'manifest.json'
  now, found = _start(mesh, step), fingerprints(cfg, mixtures)
  before, told = _read(path), [*changed]
  if before is None and not cfg.repeats:
    kept = {'config': config.to_dict(cfg), 'data': found, 'starts': []}
  else:
    earlier = place.fetched(cfg.repeats) if before is None else path
    kept = before or _read(earlier)
    if kept is None:
      raise FileNotFoundError(f'config.repeats={cfg.repeats!r} is no file; give the '
                              'manifest.json of the run to repeat')
    free = before is not None and (extend or not step or _mended(before))
    begun = {s.index for s in stages(cfg) if s.first < step or before is None}
    told += _check(kept['data'], found, earlier, begun, free)
    if told and step:
      now['changes'] = list(told)
    last = {k: v for k, v in kept['starts'][-1].items()
            if k not in ('changes', 'stopped', 'topology')}
    if step and (moved := [str(c) for c in changes.differences(
        _topology(last), _topology(now), 'start')]):
      now['topology'] = moved
    told += map(str, changes.differences(
        last | {'step': step}, {k: v for k, v in now.items()
                                if k not in ('changes', 'topology')},
        'start'))
    told += [f'the run of {earlier} was changed at step {s["step"]}, which is not '
             f'repeated: {line}' for s in kept['starts'] if before is None
             for line in s.get('changes', ())]
    if before is None or not step:
      kept = {'config': config.to_dict(cfg), 'starts': kept['starts'] if before else []}
    kept = kept | {'data': found}
  if jax.process_index() == 0:
    whole_json.write(path, kept | {'starts': [*kept['starts'], now]})
  return told


def facts(cfg: config.Config, workdir: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """What must be the same in all processes of a run, as plain data."""
  found = {k: v for k, v in _start(mesh, 0).items() if k != 'step'}
  return {'config': config.to_dict(cfg), 'workdir': workdir, **found,
          'devices of a process': jax.local_device_count()}


def stopped(folder: pathlib.Path, step: int, why: str, error: BaseException) -> None:
  """Notes that an error ended this start after `step` steps.

  why: 'diverged' (its numbers were not finite) or 'bad row'.
  """
  path = folder / 'manifest.json'
  kept = _read(path)
  if kept is None or jax.process_index() > 0:
    return
  end = {'step': step, 'why': why, 'error': str(error)[:1000]}
  kept['starts'][-1]['stopped'] = end
  whole_json.write(path, kept)


def last_stop(folder: pathlib.Path) -> str:
  """Why the start before this one ended, as `stopped` was told; '' without an error."""
  return _why(_read(folder / 'manifest.json'))


def _why(kept: dict | None) -> str:
  starts = kept['starts'] if kept else []
  return starts[-1].get('stopped', {}).get('why', '') if starts else ''


def _mended(kept: dict) -> bool:
  return _why(kept) == 'bad row'


def _read(path: pathlib.Path) -> dict | None:
  """What a manifest holds; None without one.

  Raises:
    ValueError: not a manifest.
  """
  if not path.exists():
    return None
  kept = checked_json.read(path, finite=False)
  for name, kind in (('config', dict), ('data', dict), ('starts', list)):
    if not isinstance(kept.get(name), kind):
      raise ValueError(f'{path} is no manifest of a run: it has no {name!r}; put it '
                       'back, or remove it')
  return kept


def fingerprints(cfg: config.Config, mixtures: Sequence[data.Mixture] | None = None
                 ) -> dict[str, dict[str, Any]]:
  """stages[I]/SOURCE -> its fingerprint; what several stages share is read once."""
  mixtures = data.open_stages(cfg.stages) if mixtures is None else mixtures
  return {f'stages[{i}]/{name}': mark for i, mixture in enumerate(mixtures)
          for name, mark in mixture.fingerprints.items()}


def _check(stored: dict, found: dict, where, begun: set[int], free: bool) -> list[str]:
  """What of the data differs, where it may."""
  told = []
  for name, print_ in found.items():
    if name not in stored or stored[name] == print_:
      continue
    was, now = ('{rows} rows, sha256 {sha256:.12}...'.format(**p)
                for p in (stored[name], print_))
    if not free and int(name[len('stages['):name.index(']')]) in begun:
      raise ValueError(
          f'the data of {name} is not what {where} was made with: it was {was}, and is '
          f'{now}. Restore the data, go on with this one by --extend (extend=True), or '
          "train in a fresh --workdir with --config.repeats=''")
    told.append(f'the data of {name} was {was}, is {now}')
  return told


def _start(mesh, step: int) -> dict[str, Any]:
  return {
      'step': step,
      'versions': {'python': platform.python_version()} | {
          name: _version(name) for name in _PACKAGES},
      'git': _commit(),
      'mesh': dict(mesh.shape),
      'devices': f'{mesh.size} x {jax.devices()[0].device_kind}',
      'processes': jax.process_count()}


def _topology(start: dict[str, Any]) -> dict[str, Any]:
  return {k: start.get(k) for k in ('mesh', 'devices', 'processes')}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit() -> str | None:
  """'COMMIT' or 'COMMIT-dirty' of the checkout this file is tracked in."""
  here = pathlib.Path(__file__)

  def git(*args):
    return subprocess.run(['git', '-C', str(here.parent), *args], check=True,
                          capture_output=True, text=True).stdout.strip()

  try:
    git('ls-files', '--error-unmatch', here.name)
    return git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')
  except (OSError, subprocess.CalledProcessError):
    return None  # no git, or installed without a checkout
