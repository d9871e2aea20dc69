"""Tokenised texts of their own lengths, and these laid into a rectangle."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxembed import types


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Tokenised texts of their own lengths, one behind the other.

  Row i is `ids[starts[i]:starts[i + 1]]`; its first `pool_from[i]` tokens are
  attended to but not pooled.
  """

  ids: np.ndarray  # [sum of lengths] int32
  starts: np.ndarray  # [B+1] int64
  pool_from: np.ndarray  # [B] int32
  truncated: np.ndarray  # [B] bool, text was cut to max_length

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each row, specials included: [B] int64."""
    return np.diff(self.starts)

  def __len__(self) -> int:
    return len(self.starts) - 1

  def join(self, *others: 'Ragged') -> 'Ragged':
    """Returns these rows and, behind them, those of `others`."""
    parts = self, *others
    return Ragged(np.concatenate([part.ids for part in parts]),
                  starts_of(np.concatenate([part.lengths for part in parts])),
                  np.concatenate([part.pool_from for part in parts]),
                  np.concatenate([part.truncated for part in parts]))

  def take(self, rows: Sequence[int] | np.ndarray) -> 'Ragged':
    """Returns the given rows in the given order."""
    rows = np.asarray(rows, np.int64)
    lengths = self.lengths[rows]
    starts = starts_of(lengths)
    ids = self.ids[np.repeat(self.starts[rows], lengths) + within(starts)]
    return Ragged(ids, starts, self.pool_from[rows], self.truncated[rows])


def of_rows(rows: Sequence[np.ndarray], pool_from: Sequence[int] | None = None
            ) -> Ragged:
  """Whole texts, one for each array of token ids; pool_from None: all are pooled."""
  skip = np.zeros(len(rows), np.int32) if pool_from is None else pool_from
  return Ragged(np.concatenate([np.zeros(0, np.int32), *rows]),
                starts_of(np.fromiter(map(len, rows), np.int64, len(rows))),
                np.asarray(skip, np.int32), np.zeros(len(rows), bool))


def pad(ragged: Ragged, length: int, *, pad_id: int, side: str = 'right',
        rows: int | None = None) -> types.Tokens:
  """Lays rows into a rectangle: Tokens of [rows, length], int32 and bool.

  Rows beyond `len(ragged)` hold one pad token that is marked as text: whatever
  attends or pools over such a row stays finite, and the caller drops it.

  Raises:
    ValueError: a row is longer than `length`, or there are more than `rows`.
  """
  n = len(ragged)
  rows = n if rows is None else rows
  lengths = ragged.lengths
  if n > rows or (n and lengths.max() > length):
    longest = int(lengths.max(initial=0))
    raise ValueError(
        f'{n} rows of up to {longest} tokens do not fit into [{rows}, {length}]; '
        f'truncate to {length} tokens or choose a longer bucket')
  if side not in ('left', 'right'):
    raise ValueError(f"padding side {side!r} is neither 'left' nor 'right'")
  size = np.ones(rows, np.int64)
  size[:n] = lengths
  skip = np.zeros(rows, np.int64)
  skip[:n] = ragged.pool_from
  first = length - size if side == 'left' else np.zeros_like(size)
  place = np.arange(length) - first[:, None]  # position within the text
  mask = (place >= 0) & (place < size[:, None])
  ids = np.full((rows, length), pad_id, np.int32)
  ids[:n][mask[:n]] = ragged.ids
  return types.Tokens(ids=ids, mask=mask, pool=mask & (place >= skip[:, None]))


def within(starts: np.ndarray) -> np.ndarray:
  """The place of every token in its own row, for rows that begin at `starts`."""
  return np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))


def starts_of(lengths: np.ndarray) -> np.ndarray:
  """Where rows of these lengths begin, and the end of the last: [B+1] int64."""
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
