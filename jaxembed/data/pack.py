"""Sequence packing: several texts share a row of tokens."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxembed import types
from jaxembed.data.ragged import Ragged, within

# Rows are added in steps of this part of the most a batch could need, so that few
# shapes are compiled; those beyond its texts' own are padding.
_STEPS = 32


def share_rows(query: Ragged, passage: Ragged, first: np.ndarray, local: np.ndarray,
               shards: int, *, width: int, passages: int, pad_id: int
               ) -> tuple[types.Tokens, np.ndarray, np.ndarray]:
  """Lays the texts of each device's share of a batch into rows of their own.

  Args:
    query, passage: texts of the whole batch.
    first: [Q+1] the first passage of each query, and the end.
    local: [M] the queries whose texts to lay, all of some devices (check_shares).
    shards: devices that share the batch; each has as many rows.
    passages: the most that a query can have.

  Returns:
    Tokens [rows, width] of the devices that `local` is on, one behind the other, and
    the places of its queries and passages (types.PackedPairs), int32.
  """
  each, texts = len(query) // shards, []
  for s in range(shards):
    own = range(s * each, (s + 1) * each)
    texts.append(query.take(own).join(
        passage.take(np.arange(first[own.start], first[own.stop]))))
  plans = [fit(t.lengths, width) for t in texts]
  rows = _rounded(max(p.rows for p in plans), each * (1 + passages))
  here = local[::each] // each
  texts, plans = ([x[s] for s in here] for x in (texts, plans))
  at = [(p.row * types.slots(width) + p.segment).astype(np.int32) for p in plans]
  return (_lay(texts, plans, rows, width, pad_id),
          np.concatenate([a[:each] for a in at]),
          np.concatenate([a[each:] for a in at]))


def check_shares(local: np.ndarray, total: int, shards: int) -> None:
  """Raises ValueError unless `local`, of `total` rows, are all rows of some devices."""
  each = total // shards
  whole = len(local) % each == 0 and (
      local.reshape(-1, each) == local[::each, None] + np.arange(each)).all()
  if not (whole and (local[::each] % each == 0).all()):
    raise ValueError(f'{len(local)} rows from {local[0]} on are not the rows of whole '
                     f'devices, of {shards} that share {total} rows; texts share rows '
                     'with others of their device alone')


def most_rows(texts: int, tokens: int, width: int) -> int:
  """The most rows that `share_rows` gives a device with so many texts and tokens.

  An upper bound: a row is opened when its first text fits no row with a slot left, so
  two rows with slots left hold more than `width` tokens together. There are at most
  2 tokens / width of these and one more, beside texts / slots(width) without a slot.
  """
  return _rounded(min(texts, 2 * tokens // width + texts // types.slots(width) + 1),
                  texts)


def _rounded(rows: int, texts: int) -> int:
  step = -(-texts // _STEPS)
  return -(-rows // step) * step


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where N texts lie: their row, their number in it, the tokens in front of them."""

  row: np.ndarray  # [N] int64
  segment: np.ndarray  # [N] int64
  start: np.ndarray  # [N] int64
  rows: int


def fit(lengths: Sequence[int], width: int) -> Plan:
  """Best-fit decreasing: each text, longest first, into the fullest row that has room.

  Rows hold `width` tokens and types.slots(width) texts.
  """
  slots, rows = types.slots(width), 0
  free: list[list[int]] = [[] for _ in range(width + 1)]  # by tokens left
  some = 0  # bit n is set where free[n] has a row
  held: list[int] = []
  places = np.zeros((3, len(lengths)), np.int64)
  for i in np.argsort(-np.asarray(lengths), kind='stable'):
    size = int(lengths[i])
    roomy = some >> size
    if roomy:
      left = size + (roomy & -roomy).bit_length() - 1
      row = free[left].pop()
      some ^= 0 if free[left] else 1 << left
    else:
      left, row, rows = width, rows, rows + 1
      held.append(0)
    places[:, i] = row, held[row], width - left
    held[row] += 1
    left -= size
    if held[row] < slots:
      free[left].append(row)
      some |= 1 << left
  row_of, segment, start = places
  return Plan(row_of, segment, start, rows)


def _lay(texts: Sequence[Ragged], plans: Sequence[Plan], rows: int, width: int,
         pad_id: int) -> types.Tokens:
  """Tokens of [len(texts) * rows, width] with segments, -1 on padding."""
  shape = len(texts), rows * width
  ids, segment = np.full(shape, pad_id, np.int32), np.full(shape, -1, np.int32)
  pool = np.zeros(shape, bool)
  for i, (ragged, plan) in enumerate(zip(texts, plans)):
    lengths = ragged.lengths
    place = within(ragged.starts)
    at = np.repeat(plan.row * width + plan.start, lengths) + place
    ids[i, at] = ragged.ids
    segment[i, at] = np.repeat(plan.segment, lengths)
    pool[i, at] = place >= np.repeat(ragged.pool_from, lengths)
  ids, segment, pool = (x.reshape(-1, width) for x in (ids, segment, pool))
  return types.Tokens(ids, segment >= 0, pool, segment)
