"""Settings of tokenizer_config.json, applied to the tokenizer.

transformers keeps a part of what a tokenizer does out of tokenizer.json. Each key is
known (known_keys.TOKENIZER); what is applied here is what transformers 5 does with it.
"""

from collections.abc import Iterator, Mapping
import json
import pathlib
from typing import Any
import warnings

import tokenizers
from tokenizers import normalizers

from jaxembed.data import tokenizer_class
from jaxembed.files import checked_json, known_keys
from jaxembed.files.folder import BadCheckpoint, leads_out, short

FILE = 'tokenizer_config.json'
_OLDER = 'added_tokens.json'
_NAMED = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token',
          'mask_token')
_FLAGS = ('lstrip', 'rstrip', 'normalized', 'single_word')
_FLAG = (lambda v: isinstance(v, bool), 'true or false')
_SIDE = (lambda v: v in ('left', 'right'), 'left or right')
_TOKEN = (lambda v: _is_token(v), 'a text, or an object with its content')
_TOKENS = (lambda v: (isinstance(v, list | dict) and all(
    map(_is_token, v.values() if isinstance(v, dict) else v))), 'a list of tokens')
# key -> (whether a value has its type, the type in words)
_TYPES = {
    **dict.fromkeys((
        'do_lower_case', 'tokenize_chinese_chars', 'strip_accents', 'add_prefix_space',
        'add_bos_token', 'add_eos_token', 'split_special_tokens', 'keep_accents',
        'split_by_punct'), _FLAG),
    **dict.fromkeys(('padding_side', 'truncation_side'), _SIDE),
    **dict.fromkeys(_NAMED, _TOKEN),
    **dict.fromkeys(('extra_special_tokens', 'additional_special_tokens'), _TOKENS),
    'tokenizer_class': (lambda v: isinstance(v, str), 'a text')}


def read(folder: pathlib.Path, fast: tokenizers.Tokenizer) -> dict[str, Any]:
  """The settings beside the tokenizer.json of `fast`, every key of which is known.

  'tokenizer_class' is the class that decides (tokenizer_class.resolve), and special
  tokens of that class stand where the files name none.

  Raises:
    UnsupportedModel: a key that changes the tokens in a way that is not computed.
    BadCheckpoint: no JSON.
  """
  settings = checked_json.read(folder / FILE, absent={})
  known_keys.check(settings, known_keys.TOKENIZER, str(folder / FILE))
  beside = checked_json.read(folder / 'special_tokens_map.json', absent={})
  for data, file in ((beside, folder / 'special_tokens_map.json'),
                     (settings, folder / FILE)):
    for key, value in data.items():
      holds, wanted = _TYPES.get(key, (None, ''))
      if holds and value is not None and not holds(value):
        raise BadCheckpoint(f'{file}: {key} is {short(value)}; it must be {wanted}')
  merged = beside | settings
  if 'added_tokens_decoder' not in merged:  # where older releases kept such tokens
    merged[_OLDER] = _older_file(folder / _OLDER)
  name = tokenizer_class.resolve(merged, folder, fast)
  return tokenizer_class.with_defaults(merged, name, fast) | {'tokenizer_class': name}


def _older_file(file: pathlib.Path) -> dict[str, Any]:
  if leads_out(file):  # most tokenizer.json files have these tokens themselves
    warnings.warn(f'{file} is a link out of its folder and is left out of account; put '
                  'the file itself there if the model needs it', stacklevel=2)
    return {}
  return checked_json.read(file, absent={})


def _is_token(value: Any) -> bool:
  return tokenizer_class.spelling(value) is not None


def apply(fast: tokenizers.Tokenizer, settings: Mapping[str, Any],
          folder: pathlib.Path, lower_case: bool) -> str:
  """Changes `fast` as `settings` say; returns the side on which long texts are cut.

  Args:
    lower_case: sentence-transformers' do_lower_case: put in lower case before all else.

  Raises:
    UnsupportedModel: settings that contradict tokenizer.json and are not computed.
    BadCheckpoint: settings of another type than they must have.
  """
  file = folder / FILE
  _add_tokens(fast, settings, file)
  if settings.get('split_special_tokens'):
    fast.encode_special_tokens = True
  tokenizer_class.build(fast, settings, settings['tokenizer_class'], file)
  _tell_of_ends(fast, settings, file)
  if lower_case:
    before = [] if fast.normalizer is None else [fast.normalizer]
    fast.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
  return settings.get('truncation_side') or (
      fast.truncation or {}).get('direction') or 'right'


def _add_tokens(fast: tokenizers.Tokenizer, settings: Mapping[str, Any], file) -> None:
  """Tokens that stand in the settings alone: those become whole tokens too."""
  listed = settings.get('added_tokens_decoder') or _older(fast, settings)
  try:
    rows = sorted(((int(number), tokenizers.AddedToken(**token))
                   for number, token in listed.items()), key=lambda row: row[0])
  except (AttributeError, TypeError, ValueError):
    raise BadCheckpoint(f'{file}: added_tokens_decoder is {short(listed)}, and must '
                        'have a token with its settings for every id') from None
  fast.add_tokens([token for _, token in rows])
  for number, token in rows:
    if fast.token_to_id(token.content) != number:
      raise known_keys.UnsupportedModel(
          f'{file}: added_tokens_decoder gives {short(token.content)} the id {number}, '
          f'but the tokenizer has {fast.token_to_id(token.content)}; write the token '
          'into added_tokens of tokenizer.json')
  known = {t.content for t in fast.get_added_tokens_decoder().values()}
  fast.add_tokens([t for t in _special(settings) if t.content not in known])


def _older(fast: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> dict[int, dict]:
  """Tokens of added_tokens.json that tokenizer.json lacks, as newer releases list
  them."""
  special = {token.content for token in _special(settings)}
  known = {t.content for t in fast.get_added_tokens_decoder().values()}
  return {number: {'content': token, 'special': token in special,
                   'normalized': token not in special}
          for token, number in settings.get(_OLDER, {}).items() if token not in known}


def _special(settings: Mapping[str, Any]) -> Iterator[tokenizers.AddedToken]:
  """The special tokens that the settings name, in the order in which those that the
  vocabulary lacks get their ids."""
  more = (settings.get('extra_special_tokens')
          or settings.get('additional_special_tokens') or [])
  more = more.values() if isinstance(more, dict) else more
  others = [settings[key] for key in settings if key.endswith('_token')
            and key not in (*_NAMED, 'add_bos_token', 'add_eos_token')]
  for token in (*(settings.get(key) for key in _NAMED), *others, *more):
    if isinstance(token, str) and token:
      yield tokenizers.AddedToken(token, special=True)
    elif isinstance(token, dict) and isinstance(token.get('content'), str):
      flags = {k: token[k] for k in _FLAGS if isinstance(token.get(k), bool)}
      yield tokenizers.AddedToken(token['content'], special=True, **flags)


def _tell_of_ends(fast: tokenizers.Tokenizer, settings, file) -> None:
  """Warns where a version of transformers puts other tokens around a text."""
  ids = fast.encode('a').ids
  for key, token, here in (('add_bos_token', 'bos_token', ids[:1]),
                           ('add_eos_token', 'eos_token', ids[-1:])):
    wanted = settings.get(key)
    spelt = tokenizer_class.spelling(settings.get(token))
    if not isinstance(wanted, bool) or spelt is None:
      continue
    there = here == [fast.token_to_id(spelt)]
    if wanted != there:
      place = 'before' if token == 'bos_token' else 'behind'
      warnings.warn(
          f'{file}: {key} is {json.dumps(wanted)}, but tokenizer.json puts '
          f'{"" if there else "no "}{token} {spelt!r} {place} a text. tokenizer.json '
          'decides, as in transformers 5; a model made with transformers 4 may want '
          'the other (jaxembed.data.append_token writes an ending into it)',
          stacklevel=5)

