"""The experiment of an earlier run: --config=configs/repeat.py:WORKDIR."""

import json
import pathlib

from jaxembed import config


def get_config(workdir: str) -> config.Config:
  file = pathlib.Path(workdir) / 'config.json'
  return config.from_dict(config.Config, json.loads(file.read_text()))
