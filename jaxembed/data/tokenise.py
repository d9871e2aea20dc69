"""Tokenisation: texts to ragged token ids, then to padded arrays.

A Hugging Face fast tokenizer is read straight from its folder. Which special
tokens stand around a text is its own post-processor's affair; this file cuts to
length, says which tokens are pooled, and pads.
"""

from collections.abc import Sequence
import functools
import hashlib
import json
import os
import warnings

import numpy as np
import tokenizers

from jaxembed import config, types
from jaxembed.data import (
  fast_truncation,
  tokenizer_class,
  tokenizer_file,
  tokenizer_settings,
)
from jaxembed.data.ragged import Ragged, pad, starts_of
from jaxembed.files import known_keys, place

# Whether the tokens of a prompt count in the embedding:
#   include   they do (sentence-transformers' default);
#   exclude   sentence-transformers' include_prompt=false: as many leading tokens
#             as the prompt has alone, specials in front included, one behind not;
#   nv_embed  NV-Embed: as many as the prompt has alone without specials. BOS
#             stands in front, so the prompt's last token would stay; it is the
#             lone word mark that melts into the text's first word.
PROMPT_POOLING = ('include', 'exclude', 'nv_embed')

# Texts per call into the tokenizer: bounds the memory its objects take.
_CHUNK = 4096


class Tokenizer:
  """A fast tokenizer with its padding and prompt rules.

  Attributes:
    vocab_size: one more than the largest id it can give.
    pad_id, padding_side: how its rows are padded.
    model_max_length: the longest text it was made for; None when it says none.
    special_ids: the ids of its special tokens.
    truncation_side: where long texts are cut.
    table_size: rows of the model's token table, if known.
    has_types: it gives tokens of one text a token type other than 0.
  """

  def __init__(self, fast: tokenizers.Tokenizer, *, pad_id: int,
               padding_side: str = 'right', truncation_side: str = 'right',
               model_max_length: int | None = None, prompt_pooling: str = 'include',
               eos_text: str = '', name: str = 'tokenizer',
               placeholder: tuple[str, int] | None = None):
    """Wraps a tokenizer; `load` reads one from a folder.

    Args:
      prompt_pooling: one of PROMPT_POOLING.
      eos_text: text put behind every input, '</s>' for NV-Embed, which adds no
        EOS otherwise. It is lost where a text is cut, as in the original.
      placeholder: a token that is put between prompt and text, and the id it gets.
    """
    if prompt_pooling not in PROMPT_POOLING:
      raise ValueError(f'prompt_pooling {prompt_pooling!r} is unknown; choose one '
                       f'of {", ".join(PROMPT_POOLING)}')
    fast.no_truncation()
    fast.no_padding()
    self._fast = fast
    self._cut = truncation_side == 'right' and fast_truncation.can_cut(fast)
    self.name, self.pad_id = name, pad_id
    self.padding_side, self.truncation_side = padding_side, truncation_side
    self.table_size: int | None = None
    self.model_max_length = model_max_length
    self.prompt_pooling = prompt_pooling
    self.eos_text = eos_text
    self.vocab_size = 1 + max(fast.get_vocab().values())
    self.placeholder = placeholder or ('', -1)
    if self.placeholder[0]:
      fast.add_special_tokens([tokenizers.AddedToken(self.placeholder[0])])
    self.special_ids = frozenset(
        i for i, token in fast.get_added_tokens_decoder().items() if token.special)
    self._before, self._after = _frame(fast)
    self.has_types = any(fast.encode('a').type_ids)
    self._prompt_tokens = functools.lru_cache(maxsize=4096)(self._count_prompt)

  @classmethod
  def for_model(cls, folder: str | os.PathLike, cfg: config.ModelConfig) -> 'Tokenizer':
    """The tokenizer in `folder` with all rules of the model `cfg` for its texts.

    Models that count positions from the start of a row are padded on the right,
    whatever the tokenizer says: a text's vector would else depend on its neighbours.
    Raises as `load`.
    """
    by_row = cfg.backbone.position == 'learned' or cfg.backbone.positions == 'index'
    side = 'right' if by_row else None
    tokenizer = cls.load(
        folder, table_size=cfg.backbone.vocab_size, padding_side=side,
        prompt_pooling=cfg.prompt_pooling, eos_text=cfg.eos_text,
        lower_case=cfg.lower_case, bare=cfg.bare_tokenizer,
        placeholder=cfg.prepend and (cfg.prepend.text, cfg.prepend.token_id))
    if cfg.backbone.type_vocab_size and tokenizer.has_types:
      raise known_keys.UnsupportedModel(
          f'{folder}/tokenizer.json: its post_processor gives tokens of a single text '
          'a token type other than 0, which is not supported')
    return tokenizer

  @classmethod
  def load(cls, folder: str | os.PathLike, *, table_size: int | None = None,
           prompt_pooling: str = 'include', eos_text: str = '',
           lower_case: bool = False, bare: bool = False,
           padding_side: str | None = None,
           placeholder: tuple[str, int] | None = None) -> 'Tokenizer':
    """Reads tokenizer.json and the two files of settings beside it.

    Args:
      folder: a model folder as Hugging Face writes it.
      table_size: rows of the model's token table; see `check_table`.
      lower_case: texts are put in lower case, whatever the tokenizer does.
      bare: tokenizer.json alone is read, and puts no special tokens around texts.
      padding_side: left or right; None: what the folder says.

    Raises:
      FileNotFoundError: no tokenizer.json.
      UnsupportedModel: settings that change the tokens and are not computed.
    """
    folder = place.fetched(folder)
    file = folder / 'tokenizer.json'
    if not file.is_file():
      raise FileNotFoundError(
          f'{file} does not exist; a folder with a fast tokenizer is needed '
          '(AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes one)')
    fast = tokenizer_file.read(file)
    if bare:
      settings, pad_id = {}, 0  # padding is masked, and there is no word for it
      cut = (fast.truncation or {}).get('direction', 'right')
      fast.post_processor = None
    else:
      settings = tokenizer_settings.read(folder, fast)
      pad_id = _pad_id(fast, settings)
      cut = tokenizer_settings.apply(fast, settings, folder, lower_case)
    longest = tokenizer_file.max_length(settings, folder / 'tokenizer_config.json')
    tokenizer = cls(
        fast, pad_id=pad_id, truncation_side=cut,
        padding_side=padding_side or settings.get('padding_side', 'right'),
        model_max_length=longest, prompt_pooling=prompt_pooling, eos_text=eos_text,
        name=str(folder), placeholder=placeholder)
    if table_size is not None:
      tokenizer.check_table(table_size)
    return tokenizer

  def check_table(self, size: int) -> None:
    """Has `encode` refuse the ids that a table of `size` rows does not hold.

    Tokens are added to many tokenizers that no model was trained on; where that is
    so, a warning counts them.
    """
    self.table_size = size
    if self.pad_id >= size:  # padding is masked: any row of the table will do
      self.pad_id = 0
    if self.vocab_size > size:
      warnings.warn(
          f'tokenizer {self.name} gives ids up to {self.vocab_size - 1}, but the '
          f"model's token table has {size} rows; texts with a token beyond it will be "
          'refused', stacklevel=3)

  def encode(self, texts: Sequence[str], prompts: str | Sequence[str] = '', *,
             max_length: int | Sequence[int], keep_empty: bool = False,
             first: int = 0) -> Ragged:
    """Tokenises `prompt + text`, cut to `max_length` tokens on truncation_side.

    `prompts` and `max_length` are one for all or one for each text.

    Special tokens of the post-processor survive the cut. An empty text is its
    special tokens alone. Special tokens spelt out in a text are recognised, as
    Hugging Face does. `Ragged.truncated` tells which texts were cut.

    keep_empty: a text that is whole and leaves no token to pool (an empty one, where
      no special tokens are pooled) becomes a row of length 0 instead of an error.
    first: the number of the first text, for messages.

    Raises:
      TypeError: a text or prompt is not a string.
      ValueError: a text leaves no token to pool or has one that the model's table
        does not hold, or a count of prompts differs.
    """
    prompts = _checked(texts, prompts, first)
    longest = np.broadcast_to(np.asarray(max_length, np.int64), (len(texts),))
    room = longest - len(self._before) - len(self._after)
    if len(room) and room.min() < 1:
      raise ValueError(
          f'max_length {longest.min()} leaves no room for text beside '
          f'{len(self._before) + len(self._after)} special tokens; raise it')
    bodies, truncated = self._bodies(texts, prompts, room)
    ragged, empty = self._framed(bodies, prompts, truncated)
    refused = empty & truncated if keep_empty else empty
    if refused.any():
      i = int(np.flatnonzero(refused)[0])
      _refuse_unpooled(
          first + i, texts[i], prompts[i],
          len(self._before) + len(bodies[i]) + len(self._after), longest[i],
          self._prompt_tokens(prompts[i]))
    self._refuse_unknown(ragged, texts, first)
    return ragged

  def locate(self, texts: Sequence[str], prompts: str | Sequence[str] = '',
             first: int = 0, beyond: int = 0) -> tuple[Ragged, list[np.ndarray]]:
    """As `encode`, uncut, and where in its text each token stands.

    Of every row of more than `beyond` tokens [tokens,2] int32: the characters from ..
    to of the text, (-1, -1) for tokens of the prompt and special ones; of others [0,2].
    """
    prompts = _checked(texts, prompts, first)
    found = self._fast.encode_batch(
        self._whole(texts, prompts), add_special_tokens=False)
    ragged, _ = self._framed([encoding.ids for encoding in found], prompts,
                             np.zeros(len(texts), bool))
    self._refuse_unknown(ragged, texts, first)
    return ragged, [
        self._places(encoding, text, prompt) if length > beyond else
        np.zeros((0, 2), np.int32)
        for encoding, text, prompt, length in zip(
            found, texts, prompts, ragged.lengths)]

  def _places(self, encoding: tokenizers.Encoding, text: str, prompt: str
              ) -> np.ndarray:
    at = np.array(encoding.offsets, np.int32).reshape(-1, 2) - len(
        prompt + self.placeholder[0])
    inside = (at[:, 1] > np.maximum(at[:, 0], 0)) & (at[:, 0] < len(text))
    at = np.where(inside[:, None], at.clip(0, len(text)), -1)
    return np.pad(at, ((len(self._before), len(self._after)), (0, 0)),
                  constant_values=-1)

  def _framed(self, bodies: Sequence[Sequence[int]], prompts: Sequence[str],
              truncated: np.ndarray) -> tuple[Ragged, np.ndarray]:
    """Token ids within their special tokens, and which rows leave none to pool: they
    have length 0."""
    framed = [[*self._before, *body, *self._after] for body in bodies]
    lengths = np.fromiter(map(len, framed), np.int64, len(framed))
    pool_from = np.array([self._prompt_tokens(p) for p in prompts], np.int32)
    empty = pool_from >= lengths
    ids = np.array([i for row, none in zip(framed, empty) if not none for i in row],
                   np.int32)
    if self.placeholder[0]:
      ids[ids == self._fast.token_to_id(self.placeholder[0])] = self.placeholder[1]
    return Ragged(ids, starts_of(np.where(empty, 0, lengths)),
                  np.where(empty, 0, pool_from).astype(np.int32), truncated), empty

  def digest(self) -> str:
    """Hexadecimal digest of all that decides the tokens of a text."""
    rules = [self._fast.to_str(), self.pad_id, self.padding_side, self.prompt_pooling,
             self.eos_text, self.truncation_side,
             *(self.placeholder if self.placeholder[0] else ())]
    return hashlib.blake2b(json.dumps(rules).encode(), digest_size=16).hexdigest()

  def pad(self, ragged: Ragged, length: int, rows: int | None = None) -> types.Tokens:
    """`pad` with this tokenizer's pad token and side."""
    return pad(ragged, length, pad_id=self.pad_id, side=self.padding_side, rows=rows)

  @property
  def frame(self) -> tuple[int, int]:
    """How many special tokens stand before and behind every text."""
    return len(self._before), len(self._after)

  @property
  def special_frame(self) -> tuple[list[int], list[int]]:
    """The special tokens before and after every text."""
    return list(self._before), list(self._after)

  def count(self, text: str) -> int:
    """Tokens of a text alone, without special tokens."""
    return len(self._fast.encode(text, add_special_tokens=False).ids)

  def words(self, ids: Sequence[int]) -> str:
    """Tokens as the vocabulary spells them, with blanks between."""
    return ' '.join(map(self._spellings.__getitem__, ids))

  @functools.cached_property
  def _spellings(self) -> dict[int, str]:
    return {i: token for token, i in self._fast.get_vocab().items()}

  def _whole(self, texts: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Texts with all that is read with them but the special tokens."""
    return [p + self.placeholder[0] + t + self.eos_text
            for p, t in zip(prompts, texts)]

  def _bodies(self, texts, prompts, room) -> tuple[list[list[int]], np.ndarray]:
    """Token ids without the frame, cut to `room` [B], and which were cut."""
    bodies = []
    for at in range(0, len(texts), _CHUNK):
      part = slice(at, at + _CHUNK)
      wanted = int(room[part].max()) + 1
      bodies += fast_truncation.encode(
          self._fast, self._whole(texts[part], prompts[part]), wanted, self._cut)
    truncated = np.array([len(b) > r for b, r in zip(bodies, room)], bool)
    if self.truncation_side == 'left':
      return [b[max(len(b) - r, 0):] for b, r in zip(bodies, room)], truncated
    return [b[:r] for b, r in zip(bodies, room)], truncated

  def _refuse_unknown(self, ragged: 'Ragged', texts, first: int) -> None:
    if self.table_size is None or not (ragged.ids >= self.table_size).any():
      return
    at = int(np.argmax(ragged.ids >= self.table_size))
    i, number = int(np.searchsorted(ragged.starts, at, 'right')) - 1, ragged.ids[at]
    raise ValueError(
        f'text {first + i} ({texts[i]!r:.60}) has the token '
        f'{self._fast.id_to_token(number)!r} '
        f"of id {number}, but the model's token table has {self.table_size} rows; "
        'leave the token out, use the tokenizer that belongs to the model, or enlarge '
        'the table')

  def _count_prompt(self, prompt: str) -> int:
    """Leading tokens that a prompt keeps out of the pool."""
    if not prompt or self.prompt_pooling == 'include':
      return 0
    ids = self._fast.encode(prompt, add_special_tokens=False).ids
    if self.prompt_pooling == 'nv_embed':
      return len(ids)
    ids = [*self._before, *ids, *self._after]
    return len(ids) - (ids[-1] in self.special_ids)


def _checked(texts: Sequence[str], prompts: str | Sequence[str], first: int
             ) -> Sequence[str]:
  """A prompt for each text; TypeError or ValueError if there is none for some."""
  if isinstance(texts, str):
    raise TypeError('texts is one string; give a list of strings')
  prompts = [prompts] * len(texts) if isinstance(prompts, str) else prompts
  if len(prompts) != len(texts):
    raise ValueError(f'{len(prompts)} prompts for {len(texts)} texts')
  for i, (text, prompt) in enumerate(zip(texts, prompts)):
    if not isinstance(text, str) or not isinstance(prompt, str):
      wrong = prompt if isinstance(text, str) else text
      raise TypeError(f'text {first + i} is {type(wrong).__name__} {wrong!r:.60}, '
                      'not str')
  return prompts


def _refuse_unpooled(i, text, prompt, length, longest, pool_from) -> None:
  raise ValueError(
      f'text {i} ({text!r:.60}) with prompt {prompt!r:.80} leaves no token to pool: '
      f'{length} tokens after the cut to {longest}, of which the prompt takes '
      f'{pool_from}; give a longer max_length, a shorter prompt or a text that is not '
      'empty')


def _frame(fast: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
  """The special tokens before and after every text."""
  bare = fast.encode('a', add_special_tokens=False).ids
  full = fast.encode('a').ids
  before = next((i for i in range(len(full) - len(bare) + 1)
                 if full[i:i + len(bare)] == bare), None)
  if before is None:
    raise ValueError('this tokenizer changes a text when it adds special tokens '
                     f'({bare} became {full}); that is not supported')
  return full[:before], full[before + len(bare):]


def _pad_id(fast: tokenizers.Tokenizer, settings: dict) -> int:
  """The pad token's id, or EOS's; padding is masked: without either any serves."""
  names = (tokenizer_class.spelling(settings.get(key))
           for key in ('pad_token', 'eos_token'))
  ids = (fast.token_to_id(name) for name in names if name)
  return next((number for number in ids if number is not None), 0)
