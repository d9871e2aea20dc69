"""Workdir: the folder of a run, and reading a model back from it.

    config.json         the resolved experiment
    manifest.json       the same, with data, versions and machines (train/manifest.py)
    model/              model_config.json, origin.json (where the weights came from),
                        and of the source's small files those of files/carried.py:
                        tokenizer, prompts, Hugging Face config
    checkpoints/STEP/   see checkpoint.py
    metrics.jsonl  tensorboard/  report.png  report.html  profile/
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxembed import checkpoint, config, data, types
from jaxembed.files import carried, checked_json, whole_json


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
  place = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f'another run is under way in {folder}; wait until it has '
                       'ended, or choose another --workdir') from None
    except OSError:
      pass  # a file system without locks
    yield
  finally:
    os.close(place)


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


def is_workdir(path: str | os.PathLike) -> bool:
  """Whether `path` is the folder of a run whose model is written."""
  return (pathlib.Path(path) / 'model' / 'model_config.json').is_file()


def save_model(path: pathlib.Path, model: config.ModelConfig, *,
               folders: Sequence[pathlib.Path], tokenizer: pathlib.Path | None,
               settings: Mapping[str, Any], origin: Mapping[str, Any],
               append_token: str = '') -> None:
  """Writes model/. Process 0 writes; all return once it has.

  Args:
    folders: whose settings (files/carried.py) are copied; later ones win.
    tokenizer: folder of the tokenizer's files.
    settings: all of config_sentence_transformers.json.
    origin: where the weights came from; `load_origin` gives it back.
    append_token: what the tokenizer there is to put behind every text.
  """
  if jax.process_index() == 0:
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

  step: which checkpoint; 'best': the one that scored best; None: the newest.

  Raises:
    FileNotFoundError: no model, or no checkpoint, under `path`.
  """
  path = pathlib.Path(path)
  if not is_workdir(path):
    raise FileNotFoundError(f'{path} is no jaxembed workdir: '
                            'model/model_config.json is missing')
  params, step = checkpoint.load_params(path / 'checkpoints', step)
  return params, load_model_config(path), path / 'model', step
