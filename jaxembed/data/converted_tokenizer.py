"""tokenizer.json for folders that have none: made of their vocabulary by transformers.

Older folders hold vocab.txt, vocab.json and merges.txt, or a model of sentencepiece.
What is made is kept on disk (data/cache.py), per state of these files. Nothing but
these files and plain settings is read, so no code and no pickle can be.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import shutil
import tempfile
from typing import Any
import warnings

from jaxembed.data import cache, tokenizer_class
from jaxembed.files import carried, checked_json
from jaxembed.files.folder import inside
from jaxembed.files.known_keys import UnsupportedModel

# The file whose state tells whether what was made is of today, and its companions.
_VOCABULARIES = (
    ('vocab.txt',), ('vocab.json', 'merges.txt'), ('spiece.model',), ('spm.model',),
    ('sentencepiece.bpe.model',), ('tokenizer.model',))
_SETTINGS = ('tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json')
# What transformers itself resolves, beside the classes whose pipeline is known here.
_NEUTRAL = ('', 'PreTrainedTokenizer', 'TokenizersBackend')


def folder(source: pathlib.Path) -> pathlib.Path:
  """A folder with the tokenizer of `source` as tokenizer.json: itself if it has one.

  Where there is nothing to make one of, `source` as well.

  Raises:
    UnsupportedModel: a tokenizer class whose pipeline is not known here, or files that
      transformers does not understand.
    ImportError: transformers, or sentencepiece, is not installed.
  """
  vocabulary = _vocabulary(source)
  if (source / 'tokenizer.json').is_file() or not vocabulary:
    return source
  files = [*vocabulary, *(n for n in _SETTINGS if (source / n).is_file())]
  config = checked_json.read(source / 'config.json', absent={})
  kept = {key: config[key] for key in ('model_type', 'tokenizer_class')
          if isinstance(config.get(key), str)}
  settings = checked_json.read(source / 'tokenizer_config.json', absent={})
  named = str(settings.get('tokenizer_class') or kept.get('tokenizer_class') or '')
  named = named.removesuffix('Fast')
  if named not in (*_NEUTRAL, *tokenizer_class.CLASSES):
    raise UnsupportedModel(
        f'{source} has no tokenizer.json, and {vocabulary[0]} of a {named!r:.80} is '
        'not converted; known: ' + ', '.join(sorted(tokenizer_class.CLASSES)))
  digest = hashlib.sha256(json.dumps([kept, _version()]).encode())
  for name in files[1:]:
    digest.update(inside(source, name).read_bytes())

  def make(target: pathlib.Path) -> None:
    _convert(source, files, kept, target)
    warnings.warn(
        f'{source} has no tokenizer.json; transformers {_version()} has made one of '
        f'{" and ".join(vocabulary)}', stacklevel=7)

  return cache.folder(inside(source, vocabulary[0]),
                      f'tokenizer-{digest.hexdigest()[:16]}', make)


def _vocabulary(source: pathlib.Path) -> tuple[str, ...]:
  return next((names for names in _VOCABULARIES
               if all((source / name).is_file() for name in names)), ())


def _version() -> str:
  try:
    return importlib.metadata.version('transformers')
  except importlib.metadata.PackageNotFoundError:
    raise ImportError(
        'a folder without tokenizer.json is read with transformers: pip install '
        'transformers, or save the tokenizer anew with it where it is installed'
    ) from None


def _convert(source: pathlib.Path, files: list[str], config: dict[str, Any],
             target: pathlib.Path) -> None:
  import transformers  # slow to import, and needed here alone

  with tempfile.TemporaryDirectory() as place:
    carried.copy(source, place, files)
    (pathlib.Path(place) / 'config.json').write_text(json.dumps(config))
    try:
      tokenizer = transformers.AutoTokenizer.from_pretrained(
          place, trust_remote_code=False, local_files_only=True)
      tokenizer.save_pretrained(place)
    except ImportError as e:
      raise ImportError(f'{source}: its tokenizer needs another package: {e}') from e
    except Exception as e:  # it raises all kinds
      raise UnsupportedModel(f'{source}: transformers makes no tokenizer of '
                             f'{", ".join(files)} ({type(e).__name__}: {e:.200})'
                             ) from e
    if not (pathlib.Path(place) / 'tokenizer.json').is_file():
      raise UnsupportedModel(f'{source}: {type(tokenizer).__name__} of transformers '
                             'has no fast form, which is needed')
    for name in ('tokenizer.json', 'tokenizer_config.json', 'config.json'):
      shutil.copyfile(pathlib.Path(place) / name, target / name)
