"""Pieces of long texts: windows of tokens, and the tokens of spans of characters."""

from collections.abc import Sequence

import numpy as np

from jaxembed.data.ragged import Ragged, starts_of
from jaxembed.data.tokenise import Tokenizer

Span = tuple[int, int]


def windows(tokenizer: Tokenizer, texts: Sequence[str], prompts: Sequence[str],
            max_length: int, first: int = 0) -> tuple[Ragged, np.ndarray]:
  """Texts as rows of at most `max_length` tokens, and which text each row is of.

  Each window has the prompt and the special tokens of a text of its own. The last one
  ends where the text does, and so may repeat tokens of the one before it (parallel
  windows, LongEmbed, arXiv 2404.12096). first: the number of the first text, for
  messages.

  Raises:
    ValueError: prompt and special tokens leave no room for text.
  """
  whole, places = tokenizer.locate(texts, prompts, first)
  rows, owner, skip = [], [], []
  for i, at in enumerate(places):
    ids = whole.ids[whole.starts[i]:whole.starts[i + 1]]
    inside = np.flatnonzero(at[:, 0] >= 0)
    if len(ids) <= max_length or not len(inside):
      rows, owner, skip = [*rows, ids], [*owner, i], [*skip, whole.pool_from[i]]
      continue
    low, high = int(inside[0]), int(inside[-1]) + 1
    room = max_length - low - (len(ids) - high)
    if room < 1:
      raise ValueError(
          f'text {first + i} ({texts[i]!r:.60}): its prompt and special tokens fill '
          f'the {max_length} tokens of a window; give a shorter prompt, or raise '
          'max_seq_length')
    for start in _window_starts(high - low, room):
      start += low
      rows.append(np.concatenate([ids[:low], ids[start:start + room], ids[high:]]))
      owner.append(i)
      skip.append(whole.pool_from[i] if start == low else
                  min(whole.pool_from[i], low))
  return (Ragged(np.concatenate([np.zeros(0, np.int32), *rows]),
                 starts_of(np.array([len(r) for r in rows], np.int64)),
                 np.array(skip, np.int32), np.zeros(len(rows), bool)),
          np.array(owner, np.int64))


def _window_starts(tokens: int, room: int) -> list[int]:
  starts = list(range(0, tokens, room))
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
