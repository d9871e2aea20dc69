"""Folder of the experiment on negatives: what its runs are of, the student."""

import json
import pathlib
import re
import shutil

from safetensors.numpy import load_file, save_file

from jaxembed.files import whole_json

_LAYER = re.compile(r'encoder\.layer\.(\d+)\.')


def same_experiment(folder: pathlib.Path, made: dict) -> None:
  """Notes in `folder` what its runs are of.

  Raises:
    ValueError: it holds those of another experiment, whose scores would be kept.
  """
  file, made = folder / 'experiment.json', json.loads(json.dumps(made))
  if not file.exists():
    folder.mkdir(parents=True, exist_ok=True)
    whole_json.write(file, made)
  elif (before := json.loads(file.read_text())) != made:
    changed = [name for name in made if before.get(name) != made[name]]
    raise ValueError(f'{folder} holds runs of another experiment ({file.name}: '
                     f'{", ".join(changed)}); choose another --workdir')


def student(source: pathlib.Path, layers: int, target: pathlib.Path) -> str:
  """The first layers of the BERT in the folder `source`, as a folder; made once."""
  if not target.exists():
    part = target.with_name(target.name + '.partial')
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    weights = load_file(part / 'model.safetensors')
    save_file({name: x for name, x in weights.items()
               if not (found := _LAYER.search(name)) or int(found[1]) < layers},
              part / 'model.safetensors', metadata={'format': 'pt'})
    file = part / 'config.json'
    whole_json.write(file, json.loads(file.read_text()) | {'num_hidden_layers': layers})
    part.rename(target)
  return str(target)
