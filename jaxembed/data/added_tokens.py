"""Tokens of a tokenizer: its vocabulary read, and new ones added to its files."""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import tokenizers

from jaxembed.data import tokenizer_class, tokenizer_file
from jaxembed.files import carried, checked_json, whole_json

_SPECIAL = 'extra_special_tokens'
# What a special token is for -> the keys of tokenizer_config.json that name it.
_ROLES = {'pad': ('pad_token',), 'first': ('cls_token', 'bos_token'),
          'last': ('sep_token', 'eos_token'), 'unk': ('unk_token',),
          'mask': ('mask_token',)}


def vocabulary(folder: str | os.PathLike) -> dict[str, int]:
  """Token -> id of the tokenizer in `folder`, added tokens among them.

  Raises:
    folder.BadCheckpoint: a broken tokenizer.json, or none.
  """
  return tokenizer_file.read(pathlib.Path(folder) / 'tokenizer.json').get_vocab()


def pieces(folder: str | os.PathLike, texts: Sequence[str]) -> list[list[int]]:
  """Ids that the tokenizer in `folder` gives each text, without special tokens."""
  fast = tokenizer_file.read(pathlib.Path(folder) / 'tokenizer.json')
  fast.no_truncation()
  fast.no_padding()
  return [e.ids for e in fast.encode_batch(list(texts), add_special_tokens=False)]


def spellings(folder: str | os.PathLike) -> dict[int, tuple[str, str]]:
  """Id -> (kind, text) of every token, in the same words for every kind of tokenizer.

  kind: 'role' of special tokens, whose text says what they are for (pad, first, last,
  unk, mask) or, of others, is the token; 'word' where a word begins with it, 'part'
  where one goes on; 'bytes' of a piece that is no text on its own.
  """
  folder = pathlib.Path(folder)
  file = folder / 'tokenizer.json'
  spec = checked_json.read(file, limit=checked_json.TOKENIZER)
  fast, kind = tokenizer_file.read(file), _kind(spec)
  settings = checked_json.read(folder / 'tokenizer_config.json', absent={})
  roles = {}
  for role, keys in _ROLES.items():
    names = [tokenizer_class.spelling(settings.get(k)) for k in keys]
    if name := next(filter(None, names), None):
      roles.setdefault(name, role)
  special = {t.content for t in fast.get_added_tokens_decoder().values() if t.special}
  prefix = spec['model'].get('continuing_subword_prefix') or '##'
  return {i: ('role', roles.get(token, token)) if token in special or token in roles
          else _spelt(token, kind, prefix)
          for token, i in fast.get_vocab().items()}


def _kind(spec: Mapping[str, Any]) -> str:
  """How the tokenizer marks where words begin."""
  if spec['model'].get('type') == 'WordPiece':
    return 'wordpiece'
  parts = [spec.get(key) or {} for key in ('pre_tokenizer', 'decoder')]
  steps = [s for p in parts for s in (
      p, *p.get('pretokenizers', ()), *p.get('decoders', ()))]
  return ('bytes' if any(s.get('type') == 'ByteLevel' for s in steps) else 'pieces')


def _spelt(token: str, kind: str, prefix: str) -> tuple[str, str]:
  if kind == 'wordpiece':
    begins, text = not token.startswith(prefix), token.removeprefix(prefix)
    return 'word' if begins else 'part', text
  if kind == 'pieces':
    return 'word' if token.startswith('▁') else 'part', token.removeprefix('▁')
  try:
    raw = bytes(_BYTES[c] for c in token)
  except KeyError:  # an added token, as it stands in texts
    return 'part', token
  try:
    text = raw.decode()
  except UnicodeDecodeError:
    return 'bytes', raw.hex()
  return 'word' if text.startswith(' ') else 'part', text.removeprefix(' ')


def _byte_letters() -> dict[str, int]:
  """The letter that GPT-2's byte-level tokenizers write for each byte."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [b for b in range(256) if b not in shown]
  return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_letters()


def add(source: str | os.PathLike, target: str | os.PathLike, tokens: Sequence[str],
        special: bool = False) -> dict[str, int]:
  """Copies a tokenizer into the folder `target`, with new tokens; their ids.

  A new token is found in texts before they are split, wherever it stands. `special`
  ones are not normalised before they are looked for, and decoders leave them out.

  Raises:
    ValueError: a token that is empty, named twice, or known already.
    FileNotFoundError: no tokenizer.json.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  known = vocabulary(source)
  for token in tokens:
    if not token.strip():
      raise ValueError(f'{token!r} cannot be a token; it needs a visible character')
    if token in known:
      raise ValueError(f'the tokenizer of {source} has the token {token!r} already '
                       f'(id {known[token]}); leave it out')
  if len(set(tokens)) < len(tokens):
    twice = next(t for t in tokens if list(tokens).count(t) > 1)
    raise ValueError(f'the token {twice!r} is named twice')
  carried.copy(source, target)
  fast = tokenizer_file.read(target / 'tokenizer.json')
  added = [tokenizers.AddedToken(t, special=special, normalized=not special)
           for t in tokens]
  (fast.add_special_tokens if special else fast.add_tokens)(added)
  (target / 'tokenizer.json').write_text(fast.to_str(pretty=True), 'utf-8')
  ids = fast.get_vocab()
  found = {t: ids[t] for t in tokens}
  _tell_settings(target, found, special)
  return found


def _tell_settings(folder: pathlib.Path, found: Mapping[str, int], special: bool
                   ) -> None:
  """The files beside tokenizer.json that list added tokens, where they do."""
  file = folder / 'tokenizer_config.json'
  settings = checked_json.read(file, absent={})
  if 'added_tokens_decoder' in settings:
    settings['added_tokens_decoder'] |= {
        str(i): {'content': token, 'lstrip': False, 'normalized': not special,
                 'rstrip': False, 'single_word': False, 'special': special}
        for token, i in found.items()}
  if special:
    key = next((k for k in (_SPECIAL, 'additional_special_tokens') if k in settings),
               'additional_special_tokens')
    if isinstance(settings.get(key, []), list):
      settings[key] = [*(settings.get(key) or []), *found]
  whole_json.write(file, settings)
  file = folder / 'added_tokens.json'
  if file.is_file():
    file.write_text(json.dumps(checked_json.read(file) | dict(found), indent=2,
                               ensure_ascii=False) + '\n', 'utf-8')
