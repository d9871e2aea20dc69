"""The files that a tokenizer is made of."""

import pathlib
import shutil

_FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
          'added_tokens.json', 'vocab.txt', 'vocab.json', 'merges.txt', '*.model')


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies those that `source` has."""
  for pattern in _FILES:
    for file in source.glob(pattern):
      shutil.copyfile(file, target / file.name)
