"""Appended token (EOS) after every text, written into the tokenizer itself."""

import os
import pathlib

from jaxembed.data import tokenizer_class, tokenizer_file, tokenizer_settings
from jaxembed.files import checked_json, whole_json


def append_token(folder: str | os.PathLike, token: str) -> None:
  """Makes the tokenizer in `folder` put `token` behind every text.

  It is one of the special tokens then, which no cut removes, for whoever loads the
  folder: this package or transformers. A tokenizer that does so already stays as it is.

  Raises:
    ValueError: see `with_token`.
  """
  folder = pathlib.Path(folder)
  changed, settings = with_token(folder, token), folder / 'tokenizer_config.json'
  if changed:
    whole_json.write(folder / 'tokenizer.json', changed)
  # Some classes of transformers build their ending from it.
  known = checked_json.read(settings, absent={})
  if tokenizer_class.spelling(known.get('eos_token')) == token and (
      not known.get('add_eos_token')):
    whole_json.write(settings, known | {'add_eos_token': True})


def with_token(folder: str | os.PathLike, token: str) -> dict | None:
  """tokenizer.json as `append_token` makes it; None where nothing is to be done.

  Raises:
    ValueError: the tokenizer does not know the token, or frames texts in a way that
      has no place for it.
  """
  file = pathlib.Path(folder) / 'tokenizer.json'
  fast = tokenizer_file.read(file)
  fast.no_padding()
  number = fast.token_to_id(token)
  if number is None:
    raise ValueError(f'{file} has no token {token!r} to put behind every text; name '
                     'one of its special tokens')
  settings = tokenizer_settings.read(file.parent, fast)
  frame = tokenizer_class.frame(settings)
  if frame and frame[1] == token:
    return None
  if frame:
    raise ValueError(
        f'{file}: {settings["tokenizer_class"]} of transformers puts {frame[1]!r} '
        f'behind every text, whatever the file says; for {token!r} write '
        '"tokenizer_class": "TokenizersBackend" into a copy of the folder')
  if fast.encode('a').ids[-1:] == [number]:
    return None
  spec = checked_json.read(file, limit=checked_json.TOKENIZER)
  return spec | {'post_processor': _framed(spec['post_processor'], token, number, file)}


def _framed(before: dict | None, token: str, number: int, file: pathlib.Path) -> dict:
  """The post-processor `before`, in the form tokenizer.json has it, with the token."""
  steps = before.get('processors', [before]) if before else []
  template = next((s for s in steps if s['type'] == 'TemplateProcessing'), None)
  if template is None:
    if any(s['type'] != 'ByteLevel' for s in steps):
      raise ValueError(f'{file} frames texts by {[s["type"] for s in steps]}; a token '
                       'is put behind texts of TemplateProcessing alone')
    template = {'type': 'TemplateProcessing', 'single': [_part('Sequence', 'A', 0)],
                'pair': [_part('Sequence', 'A', 0), _part('Sequence', 'B', 1)],
                'special_tokens': {}}
    steps = [*steps, template]
  template['single'].append(_part('SpecialToken', token, 0))
  template['pair'].append(_part('SpecialToken', token, 1))
  template['special_tokens'][token] = {'id': token, 'ids': [number], 'tokens': [token]}
  return steps[0] if len(steps) == 1 else {'type': 'Sequence', 'processors': steps}


def _part(kind: str, name: str, segment: int) -> dict:
  return {kind: {'id': name, 'type_id': segment}}
