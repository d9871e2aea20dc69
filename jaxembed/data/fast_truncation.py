"""Fast truncation: the first tokens of a long text without tokenising all of it.

A text of a million characters costs a second, of which a model that reads 512
tokens needs a thousandth. Tokenising a prefix is exact where no token can reach
across the cut, and `can_cut` says where that is known.
"""

from collections.abc import Sequence
import json
import re

import tokenizers

# Between two words of ASCII letters: no normaliser, regular expression or accent
# acts across the space there, whatever stands further off.
_GAP = re.compile(r'(?<=[A-Za-z]) (?=[A-Za-z])')
# Characters tried at first per token wanted; English has four to five.
_CHARS_PER_TOKEN = 6
_MARK = '\u2581'  # how sentencepiece writes a space


def can_cut(fast: tokenizers.Tokenizer) -> bool:
  """True if no token of this tokenizer crosses from a letter over a space.

  Either the pre-tokenizer separates there (seen on a probe; every word is then
  tokenised for itself), or spaces become word marks and no token of the
  vocabulary has a mark behind another character, so that no merge can join them.
  """
  spec = json.loads(fast.to_str())
  if any(re.search(r'\s', token['content']) for token in spec['added_tokens']):
    return False  # such a token is looked for before words are
  text = 'ab cd'
  if fast.normalizer is not None:
    text = fast.normalizer.normalize_str(text)
  pieces = [text]
  if fast.pre_tokenizer is not None:
    pieces = [p for p, _ in fast.pre_tokenizer.pre_tokenize_str(text)]
  words = [w for w in (p.lstrip(_MARK + ' \u0120') for p in pieces) if w]
  if words == ['ab', 'cd']:
    return True
  return (words == [f'ab{_MARK}cd']
          and not any(_MARK in token.lstrip(_MARK) for token in fast.get_vocab()))


def encode(fast: tokenizers.Tokenizer, texts: Sequence[str], wanted: int,
           cut: bool) -> list[list[int]]:
  """Token ids of each text without specials; at least `wanted` of a longer one.

  Where a text has more than `wanted` tokens, only a prefix of the list may come
  back, never shorter than `wanted` and equal to the whole list that far.
  """
  chars = wanted * _CHARS_PER_TOKEN
  out: list[list[int]] = [[] for _ in texts]
  todo = list(range(len(texts)))
  while todo:
    ends = [_gap(texts[i], chars) if cut else len(texts[i]) for i in todo]
    found = fast.encode_batch_fast(
        [texts[i][:end] for i, end in zip(todo, ends)], add_special_tokens=False)
    short = []
    for i, end, encoding in zip(todo, ends, found):
      if end == len(texts[i]) or len(encoding) >= wanted:
        out[i] = encoding.ids
      else:
        short.append(i)
    todo, chars = short, chars * 4
  return out


def _gap(text: str, chars: int) -> int:
  """The last gap between words before `chars`, or the text's end."""
  if len(text) <= chars:
    return len(text)
  gaps = [m.start() for m in _GAP.finditer(text, max(0, chars - 2000), chars)]
  return gaps[-1] if gaps else len(text)
