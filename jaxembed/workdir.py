"""Workdir: the folder of a run, and reading a model back from it.

    config.json         the resolved experiment
    manifest.json       the same, with data, versions and machines (train/manifest.py)
    model/              model_config.json, origin.json (where the weights came from),
                        and of the source's small files those of files/carried.py:
                        tokenizer, prompts, Hugging Face config
    checkpoints/STEP/   see checkpoint.py
    metrics.jsonl  tensorboard/  report.png  report.html  profile/
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxembed import checkpoint, config, data, shares, types
from jaxembed.files import (
  alone as alone_lib,
  carried,
  checked_json,
  mirror,
  place,
  url as url_lib,
  whole_json,
)
from jaxembed.files.url import Objects


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of `folder`, which is made, until it is left.

  The end of the process, of any kind, leaves it too.

  Raises:
    ValueError: another run is under way in it.
    NotADirectoryError: it is a file.
  """
  if jax.process_index() > 0:
    yield
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except FileExistsError:
    raise NotADirectoryError(f'{folder} is a file; choose another --workdir') from None
  with contextlib.ExitStack() as held:
    try:
      held.enter_context(alone_lib.alone(folder / 'run.lock', 'it', ''))
    except alone_lib.Held as e:
      raise ValueError(
          f'another run is under way in {folder}; wait until process {e.process} on '
          f'host {e.host} has ended, or choose another --workdir') from None
    yield


def check_free(folder: pathlib.Path) -> None:
  """Raises ValueError if what `folder` holds is no run, and a run would overwrite it,
  or is one whose model is gone."""
  steps = checkpoint.steps(folder / 'checkpoints')
  if steps:
    raise ValueError(
        f'{folder} holds checkpoints of the steps {steps}, but model/model_config.json '
        'is missing; put it back, or choose another --workdir')
  if (folder / 'manifest.json').is_file():
    return  # a run that ended before its model was written
  for name in ('config.json', 'model'):
    if (folder / name).exists():
      raise ValueError(f'{folder} holds {name}, and not of a run, which would write '
                       'over it; choose another --workdir')


def steps(path: str | os.PathLike) -> list[int]:
  """Steps of the checkpoints of a run, in a folder or at a URL, ascending."""
  if (url := url_lib.of(path)) is None:
    return checkpoint.steps(pathlib.Path(path) / 'checkpoints')
  return _steps(Objects(url).names())


def _steps(names: Iterable[str]) -> list[int]:
  return sorted(map(mirror.number, mirror.marked(names)))


def fetched(url: str, step: checkpoint.Step = None, *, weights: bool = True
            ) -> pathlib.Path:
  """A copy on this machine of a run at a URL, with one of its checkpoints.

  Raises:
    FileNotFoundError: no run is there, or not with that checkpoint.
    OSError: the store cannot be reached.
  """
  objects = Objects(url)
  there = objects.names()
  if 'model/model_config.json' not in there:
    raise FileNotFoundError(f'{url} is no jaxembed workdir: '
                            'model/model_config.json is missing')
  steps = _steps(there)
  if weights and step == 'best' and 'checkpoints/best.json' in there:
    step = json.loads(objects.read('checkpoints/best.json')).get('step', step)
  chosen = steps[-1] if step is None and steps else step
  if weights and chosen not in steps:
    raise FileNotFoundError(f'no checkpoint {"" if step is None else step} under '
                            f'{url}; there are: {steps or "none"}')
  target = place.staging(url, f'step {chosen}' if weights else 'settings')
  unit = f'checkpoints/{chosen}' if weights else None
  target.parent.mkdir(parents=True, exist_ok=True)
  with alone_lib.alone(target.with_name('fetch.lock'), url, 'read it later', wait=True):
    mirror.Mirror(objects, target).pull(
        lambda name: mirror.unit_of(name) == unit if 'checkpoints/' in name
        else name.startswith('model/') or '/' not in name)
    if weights:
      shares.join(target / 'checkpoints' / str(chosen))
  return target


def is_workdir(path: str | os.PathLike) -> bool:
  """Whether `path` is the folder, or the URL, of a run whose model is written."""
  if (url := url_lib.of(path)) is not None:
    return Objects(url).head('model/model_config.json') is not None
  return (pathlib.Path(path) / 'model' / 'model_config.json').is_file()


def save_model(path: pathlib.Path, model: config.ModelConfig, *,
               folders: Sequence[pathlib.Path], tokenizer: pathlib.Path | None,
               settings: Mapping[str, Any], origin: Mapping[str, Any],
               append_token: str = '') -> None:
  """Writes model/. Process 0 writes, or each where each has a folder of its own; all
  return once it is there.

  Args:
    folders: whose settings (files/carried.py) are copied; later ones win.
    tokenizer: folder of the tokenizer's files.
    settings: all of config_sentence_transformers.json.
    origin: where the weights came from; `load_origin` gives it back.
    append_token: what the tokenizer there is to put behind every text.
  """
  if checkpoint.writes(path):
    target = pathlib.Path(path) / 'model'
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
      carried.copy_settings(folder, target, tokenizer=False)
    if tokenizer is not None:
      carried.copy(tokenizer, target)
    if append_token:
      data.append_token(target, append_token)
    whole_json.write(target / 'config_sentence_transformers.json', dict(settings))
    whole_json.write(target / 'origin.json', dict(origin))
    # Last: its presence says that the folder is whole.
    whole_json.write(target / 'model_config.json', dataclasses.asdict(model))
  multihost_utils.sync_global_devices('jaxembed.workdir.save_model')


def load_model_config(path: str | pathlib.Path) -> config.ModelConfig:
  """The ModelConfig of a run."""
  file = pathlib.Path(path) / 'model' / 'model_config.json'
  return config.from_dict(config.ModelConfig, checked_json.read(file), str(file))


def load_origin(path: str | pathlib.Path) -> dict[str, Any]:
  """What save_model was told of the weights' origin; {} in workdirs without it."""
  file = pathlib.Path(path) / 'model' / 'origin.json'
  return checked_json.read(file) if file.is_file() else {}


def load(path: str | pathlib.Path, step: checkpoint.Step = None
         ) -> tuple[types.Params, config.ModelConfig, pathlib.Path, int]:
  """(params, model config, folder of tokenizer and prompts, step) of a run.

  path: a folder or a URL.
  step: which checkpoint; 'best': the one that scored best; None: the newest.

  Raises:
    FileNotFoundError: no model, or no checkpoint, under `path`.
  """
  if (url := url_lib.of(path)) is not None:
    path, step = fetched(url, step), None if step == 'best' else step
  path = pathlib.Path(path)
  if not is_workdir(path):
    raise FileNotFoundError(f'{path} is no jaxembed workdir: '
                            'model/model_config.json is missing')
  params, step = checkpoint.load_params(path / 'checkpoints', step)
  return params, load_model_config(path), path / 'model', step
