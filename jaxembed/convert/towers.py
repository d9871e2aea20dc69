"""Towers of a Router of sentence-transformers (query, document): one is opened.

Each is a model of its own, in folders beside each other. A source names it behind '#':
'FOLDER#query'.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.files import checked_json
from jaxembed.files.folder import inside, short

# The module's class -> its file, and what an older release called it.
_FILES = {'Router': ('router_config.json', 'config.json'), 'Asym': ('config.json',)}
_LIBRARY = 'sentence_transformers.'


def is_router(entry: Mapping[str, Any]) -> bool:
  """Whether a module of modules.json has towers."""
  kind = str(entry.get('type'))
  return kind.startswith(_LIBRARY) and kind.rpartition('.')[2] in _FILES


def names(folder: pathlib.Path, entry: Mapping[str, Any]) -> tuple[str, ...]:
  """The towers of the Router `entry` of modules.json in `folder`."""
  return tuple(_structure(folder, entry).data)


def modules(folder: pathlib.Path, entry: Mapping[str, Any], tower: str
            ) -> list[dict[str, str]]:
  """Entries as of modules.json in the place of `entry`: the modules of `tower`.

  Raises:
    UnsupportedModel: no such tower, or a file that says nothing of one.
  """
  structure = _structure(folder, entry)
  types = Fields(_read(folder, entry).object('types', {}), structure.file)
  if tower not in structure.data:
    told = f'has no tower {tower!r:.80}' if tower else 'has towers, models of their own'
    raise UnsupportedModel(
        f'{structure.file}: the model {told}; name one behind the source, '
        f"'SOURCE#TOWER': {short(', '.join(structure.data))[1:-1]}")
  return [{'path': '/'.join(filter(None, (entry['path'], name))),
           'type': types.text(name) or ''} for name in structure.texts(tower)]


def _structure(folder, entry) -> Fields:
  fields = _read(folder, entry)
  return Fields(fields.object('structure', {}), fields.file)


def _read(folder: pathlib.Path, entry: Mapping[str, Any]) -> Fields:
  place = inside(folder, entry['path'])
  files = [place / name for name in _FILES[entry['type'].rpartition('.')[2]]]
  file = next((f for f in files if f.is_file()), files[0])
  return Fields(checked_json.read(file, absent={}), str(file))
