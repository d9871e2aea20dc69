"""Copying of tokenizer and settings files into a workdir or an export.

A closed list: whatever else lies in a folder (weights, optimiser states, keys, code)
stays there, and so does what a link out of it points to. Settings that name code,
or paths on the machine of whoever wrote them, are left out on the way.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import re
from typing import Any
import warnings

from jaxembed.files import checked_json, folder

TOKENIZER = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
             'added_tokens.json', 'vocab.txt', 'vocab.json', 'merges.txt',
             'tokenizer.model', 'spiece.model', 'sentencepiece.bpe.model')
# Transformer modules of sentence-transformers had one name per family.
LIMITS = tuple(f'sentence_{family}_config.json' for family in (
    'bert', 'roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet'))
SETTINGS = ('config.json', 'modules.json', 'config_sentence_transformers.json', *LIMITS)
_PARSED = frozenset(SETTINGS) | {
    'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json'}
_MODULE_FOLDER = re.compile(r'\d+_\w+')
# Keys that make a reader import code, or that hold a path of another machine.
_LEFT_OUT = re.compile(
    r'auto_map|\w*_implementation\w*|custom_\w+|use_kernels|kernel_config'
    r'|trust_remote_code|\w+_file')
_OWN_CLASSES = 'sentence_transformers.'


def copy(source: str | os.PathLike, target: str | os.PathLike,
         names: Sequence[str] = TOKENIZER) -> None:
  """Copies the files of `names` that `source` has into the folder `target`.

  Raises:
    folder.BadCheckpoint: settings that are no JSON.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  for name in names:
    if not os.path.lexists(source / name):
      continue
    try:
      file = folder.inside(source, name)
    except folder.BadCheckpoint as e:
      warnings.warn(f'{source / name} is not copied: {e}', stacklevel=2)
      continue
    data = _contents(file)
    if data is not None:
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      (target / name).write_bytes(data)


def copy_settings(source: str | os.PathLike, target: str | os.PathLike,
                  tokenizer: bool = True) -> None:
  """Copies tokenizer, config.json, and how sentence-transformers puts modules together.

  tokenizer: False leaves its files out.

  Raises:
    folder.BadCheckpoint: settings that are no JSON.
  """
  source = pathlib.Path(source)
  modules = sorted(f'{path.name}/config.json' for path in source.iterdir()
                   if _MODULE_FOLDER.fullmatch(path.name))
  copy(source, target, (*(TOKENIZER if tokenizer else ()), *SETTINGS, *modules))


def without_code(settings: Any) -> Any:
  """Parsed settings without the keys that name code or another machine's paths."""
  if isinstance(settings, dict):
    return {key: without_code(value) for key, value in settings.items()
            if not _LEFT_OUT.fullmatch(key)}
  if isinstance(settings, list):
    return [without_code(value) for value in settings]
  return settings


def code_named(source: str | os.PathLike) -> list[str]:
  """What in a folder would make other libraries import code that lies in it, or that
  it names: Python files, auto_map, classes that are not sentence-transformers' own.

  Raises:
    folder.BadCheckpoint: settings that are no JSON.
  """
  source = pathlib.Path(source)
  found = sorted(str(p.relative_to(source)) for p in source.rglob('*.py'))
  for name in ('config.json', 'tokenizer_config.json', 'processor_config.json',
               'preprocessor_config.json'):
    for file in sorted(source.rglob(name)):
      value = checked_json.read(file)
      if without_code(value) != value:
        found.append(f'{file.relative_to(source)}: '
                     + ', '.join(sorted(value.keys() - without_code(value).keys())))
  for entry in checked_json.read(source / 'modules.json', list, absent=[]):
    kind = entry.get('type') if isinstance(entry, dict) else None
    if not isinstance(kind, str) or not kind.startswith(_OWN_CLASSES):
      found.append(f'modules.json: {folder.short(kind)}')
  return found


def _contents(file: pathlib.Path) -> bytes | None:
  """The bytes to be written; None: nothing that may travel."""
  data = folder.read_bytes(file, checked_json.TOKENIZER)
  if file.name not in _PARSED:
    return data
  if file.name == 'modules.json':
    kinds = [m.get('type') if isinstance(m, dict) else None
             for m in checked_json.parse(data, str(file), list)]
    plain = all(isinstance(k, str) and k.startswith(_OWN_CLASSES) for k in kinds)
    return data if plain else None
  value = checked_json.parse(data, str(file))
  if file.name == 'added_tokens.json':  # its keys are tokens
    return data
  kept = without_code(value)
  return data if kept == value else (
      json.dumps(kept, indent=2, ensure_ascii=False) + '\n').encode()
