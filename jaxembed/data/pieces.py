"""Pieces of long texts: windows of tokens, and the tokens of spans of characters."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxembed.data.ragged import Ragged, of_rows
from jaxembed.data.tokenise import Tokenizer

Span = tuple[int, int]

# Of texts whose tokens are located at once: these take some hundred bytes each.
_CHARACTERS = 2**20


def windows(tokenizer: Tokenizer, texts: Sequence[str], prompts: str | Sequence[str],
            max_length: int, first: int = 0) -> tuple[Ragged, np.ndarray]:
  """Texts as rows of at most `max_length` tokens, and which text each row is of.

  Each window has the prompt and the special tokens of a text of its own. The last one
  ends where the text does, and so may repeat tokens of the one before it (parallel
  windows, LongEmbed, arXiv 2404.12096). first: the number of the first text, for
  messages.

  Raises:
    ValueError: prompt and special tokens leave no room for text.
  """
  rows, owner, skip = [], [], []
  for i, ids, at, pool_from in located(tokenizer, texts, prompts, first, max_length):
    parts = [(ids, pool_from)]
    if len(ids) > max_length:
      inside = np.flatnonzero(at[:, 0] >= 0)
      low, high = (inside[0], inside[-1] + 1) if len(inside) else (0, 0)
      room = max_length - low - (len(ids) - high)
      if room < 1:
        raise ValueError(
            f'text {first + i} ({texts[i]!r:.60}): its prompt and special tokens fill '
            f'the {max_length} tokens of a window; give a shorter prompt, or raise '
            'max_seq_length')
      parts = [(np.concatenate([ids[:low], ids[start:start + room], ids[high:]]),
                pool_from if start == low else min(pool_from, low))
               for start in low + _window_starts(high - low, room)]
    for part, skipped in parts:
      rows.append(part)
      owner.append(i)
      skip.append(skipped)
  return of_rows(rows, skip), np.array(owner, np.int64)


def located(tokenizer: Tokenizer, texts: Sequence[str], prompts: str | Sequence[str],
            first: int = 0, beyond: int = 0
            ) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
  """Yields of every text its number, its token ids, where they stand and how many of
  them are not pooled, as Tokenizer.locate gives them; a few texts at a time, as places
  take memory."""
  start = size = 0
  for end, text in enumerate(texts, 1):
    size += len(text)
    if size < _CHARACTERS and end < len(texts):
      continue
    part = slice(start, end)
    rows, places = tokenizer.locate(
        texts[part], prompts if isinstance(prompts, str) else prompts[part],
        first + start, beyond)
    for i, at in enumerate(places):
      yield (start + i, rows.ids[rows.starts[i]:rows.starts[i + 1]], at,
             int(rows.pool_from[i]))
    start, size = end, 0


def _window_starts(tokens: int, room: int) -> np.ndarray:
  starts = np.arange(0, tokens, room)
  starts[-1] = max(tokens - room, 0)
  return starts


def tokens_of(span: Span, at: np.ndarray) -> Span:
  """The tokens (first, after the last) of a span of characters; equal: there are none.

  at [tokens,2]: of Tokenizer.locate. A token is of the span that holds its last
  character, so spans that do not overlap share none; a span that holds no token's last
  character has the token it lies in.
  """
  start, end = span
  of_text = at[:, 0] >= 0
  ends = of_text & (at[:, 1] > start) & (at[:, 1] <= end)
  if not ends.any():
    ends = of_text & (at[:, 1] > start) & (at[:, 0] < end)
  found = np.flatnonzero(ends)
  return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


def spans_of(at: np.ndarray, size: int, overlap: int) -> list[Span]:
  """The characters of every `size` tokens of a text, each `overlap` of the last's.

  The last span is what is left, and may be shorter. No token: no span.
  """
  inside = at[at[:, 0] >= 0]
  found = []
  for start in range(0, len(inside), size - overlap):
    part = inside[start:start + size]
    found.append((int(part[0, 0]), int(part[-1, 1])))
    if start + size >= len(inside):
      break
  return found
