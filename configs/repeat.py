"""The experiment of an earlier run: --config=configs/repeat.py:MANIFEST_OR_WORKDIR.

--config=MANIFEST.json is short for it. From a manifest the data must be the same as
well, unless --config.repeats='' says otherwise.
"""

import pathlib

from jaxembed import config
from jaxembed.files import checked_json


def get_config(path: str) -> config.Config:
  file = pathlib.Path(path)
  if file.is_dir():
    found = file / 'manifest.json'
    file = found if found.exists() else file / 'config.json'
  stored = checked_json.read(file, finite=False)
  if 'config' not in stored:  # the config.json of a run
    return config.from_dict(config.Config, stored)
  cfg = config.from_dict(config.Config, stored['config'])
  cfg.repeats = str(file)
  return cfg
