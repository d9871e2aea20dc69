"""What a run was made of: enough to repeat it, or to say why it cannot be.

    config   the resolved experiment, as at the first start
    data     stages[I]/SOURCE -> rows and sha256, of everything trained on
    starts   one record per start and resume: versions, code, mesh, machines

config and data never change; starts grows. launch/train.py takes the file as its
--config.
"""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

import jax

from jaxembed import config, data, workdir

_PACKAGES = ('jaxembed', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
             'tokenizers', 'grain')


def record(folder: pathlib.Path, cfg: config.Config, mesh, step: int) -> list[str]:
  """Writes folder/manifest.json, or adds this start at `step` to it.

  Returns what differs between this start and the one it follows or repeats.

  Raises:
    ValueError: the data is not that of the manifest here, or of cfg.repeats.
  """
  path = folder / 'manifest.json'
  now, found = _start(mesh, step), fingerprints(cfg)
  mine = path.exists()
  told = []
  if mine or cfg.repeats:
    earlier = path if mine else pathlib.Path(cfg.repeats)
    before = json.loads(earlier.read_text())
    _check(before['data'], found, earlier)
    told = list(workdir.differences(
        before['starts'][-1] | {'step': step}, now, 'start'))
  if jax.process_index() == 0:
    kept = before if mine else {
        'config': config.to_dict(cfg), 'data': found, 'starts': []}
    workdir.write_json(path, kept | {'starts': [*kept['starts'], now]})
  return told


def fingerprints(cfg: config.Config) -> dict[str, dict[str, Any]]:
  """stages[I]/SOURCE -> its fingerprint; what several stages share is read once."""
  found, known = {}, {}
  for i, stage in enumerate(cfg.stages):
    for source in stage.data.sources:
      key = (source.kind, source.path, source.split, source.data_dir, source.limit,
             source.rows, source.min_score, source.max_negative_score, source.symmetric)
      if key not in known:
        known[key] = data.fingerprint(source)
      found[f'stages[{i}]/{source.name}'] = known[key]
  return found


def _check(stored: dict, found: dict, where):
  for name, print_ in found.items():
    if name in stored and stored[name] != print_:
      was, now = ('{rows} rows, sha256 {sha256:.12}...'.format(**p)
                  for p in (stored[name], print_))
      raise ValueError(
          f'the data of {name} is not what {where} was made with: it was {was}, and is '
          f'{now}. Restore the data, or train in a fresh --workdir with '
          "--config.repeats=''")


def _start(mesh, step: int) -> dict[str, Any]:
  return {
      'step': step,
      'versions': {'python': platform.python_version()} | {
          name: _version(name) for name in _PACKAGES},
      'git': _commit(),
      'mesh': dict(mesh.shape),
      'devices': f'{mesh.size} x {jax.devices()[0].device_kind}',
      'processes': jax.process_count()}


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
