"""The YAML header of a README.md, as the hub reads a model's card."""

import pathlib
from typing import Any

import yaml

from jaxembed.files import folder as folders

# Of a header; the hub's longest are a tenth.
_MOST_BYTES = 200_000
# Written in C where it is there: headers with scores of MTEB take a second otherwise.
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
# What goes on to models that are made of this one.
KEYS = ('license', 'license_name', 'license_link', 'language', 'base_model', 'datasets')


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Keys of KEYS in the header of `folder`'s README.md, each a text or list of texts.

  A card that cannot be read says nothing: what a model computes does not hang on it.
  """
  try:
    text = folders.read_bytes(folders.inside(folder, 'README.md'), _MOST_BYTES)
    head = text.decode().split('---\n')
    there = len(head) > 2 and not head[0].strip()
    data = yaml.load(head[1], Loader=_LOADER) if there else None
  except (OSError, ValueError, yaml.YAMLError, RecursionError):
    return {}
  return only_texts(data)


def only_texts(data: Any) -> dict[str, Any]:
  """Of `data` what is of KEYS and a text or list of texts."""
  if not isinstance(data, dict):
    return {}
  return {key: value for key in KEYS if (value := data.get(key)) and (
      isinstance(value, str) or (isinstance(value, list) and all(
          isinstance(v, str) for v in value)))}
