"""Length bucketing: batches of few shapes with little padding.

XLA compiles one program per shape, and every padded token is computed for
nothing. Texts are sorted by length, cut into batches of about equal token count
(short texts in tall batches, long ones in flat ones), and each batch is padded
to one of a few lengths chosen for these very texts.
"""

from collections.abc import Collection, Sequence

import numpy as np

# A batch holds about batch_size texts of this many tokens: a sentence or two.
_TYPICAL = 64
# Lengths and rows keep four significant bits (1 to 16, then 18 to 32 by twos, 36
# to 64 by fours ...), so that similar calls meet in the same shapes.
_BITS = 4
# Padding below this share of all tokens is not worth another compilation. Above
# it, a shape must save this share of all tokens, and this many, to be taken.
_GOOD = 0.09
_PRICE = 0.01
_PRICE_FLOOR = 64

Batch = tuple[np.ndarray, int, int]


def length_batches(lengths: Sequence[int] | np.ndarray, batch_size: int,
                   max_length: int, *, row_multiple: int = 1, max_shapes: int = 10,
                   known: Collection[tuple[int, int]] = ()) -> list[Batch]:
  """Returns batches (indices, rows, length), longest texts first.

  `indices` name the texts of a batch, at most `rows` of them; the caller pads to
  [rows, length]. Every index comes exactly once. All batches of one length have
  the same number of rows. A shape that is not `known` is used only where it
  saves enough padding to be worth a compilation.

  Args:
    lengths: tokens of every text, each at most `max_length`.
    batch_size: a batch's size in texts of 64 tokens: a batch holds about
      64 x batch_size tokens, so longer texts come in fewer rows.
    row_multiple: rows are a multiple of it (the devices that share them).
    max_shapes: the most new shapes one call may ask for.
    known: shapes (rows, length) that are compiled already and cost nothing.

  Raises:
    ValueError: a length is below 1 or above `max_length`.
  """
  lengths = np.asarray(lengths, np.int64)
  if not len(lengths):
    return []
  if lengths.min() < 1 or lengths.max() > max_length:
    raise ValueError(
        f'lengths reach from {lengths.min()} to {lengths.max()}, outside 1 to '
        f'max_length {max_length}; truncate to max_length first')
  if min(batch_size, row_multiple, max_shapes) < 1:
    raise ValueError(f'batch_size {batch_size}, row_multiple {row_multiple} and '
                     f'max_shapes {max_shapes} must be at least 1')
  order = np.argsort(-lengths, kind='stable')
  known = frozenset(known)
  total = int(lengths.sum())
  price = max(_PRICE * total, _PRICE_FLOOR)
  best, least = [], (True, np.inf)
  # Half-size batches only where full ones pad too much: fewer texts then share a
  # batch with the next longer class.
  for budget in (_TYPICAL * batch_size, _TYPICAL * batch_size // 2):
    for chosen in _choices(lengths, max_length, known, max_shapes):
      for reuse in (known, frozenset()) if known else (known,):
        plan = _walk(order, lengths, chosen, budget, row_multiple, reuse)
        new = {(rows, length) for _, rows, length in plan} - known
        waste = sum(rows * length for _, rows, length in plan) - total
        share = waste / (waste + total)
        poor = share > _GOOD and waste > _PRICE_FLOOR
        cost = poor, len(new) * price + (waste if poor else share)
        if cost < least:
          best, least = plan, cost
    if not least[0]:
      break
  return best


def padding_share(lengths: Sequence[int] | np.ndarray,
                  batches: Sequence[Batch]) -> float:
  """Padded tokens over all tokens computed, 0 for no batches."""
  total = sum(rows * length for _, rows, length in batches)
  return 1 - float(np.sum(lengths)) / total if total else 0.0


def round_up(n: int) -> int:
  """The smallest number of few significant bits that is at least n."""
  step = 1 << max((n - 1).bit_length() - _BITS, 0)
  return -(-n // step) * step


def _walk(order, lengths, chosen: list[int], most_tokens: int, multiple: int,
          reuse: Collection[tuple[int, int]]) -> list[Batch]:
  """Cuts the texts, longest first, into batches of the chosen lengths.

  A class's last batch is filled up with texts of the next shorter class, which
  costs their difference in length only.
  """
  plan, at = [], 0
  ends = np.searchsorted(-lengths[order], -np.array([0, *chosen[:-1]]), side='left')
  for length, end in zip(reversed(chosen), reversed(ends.tolist())):
    if at >= end:
      continue  # the batches of longer texts took the whole class
    rows = _rows(end - at, most_tokens // length, multiple,
                 [r for r, at_length in reuse if at_length == length])
    while at < end:
      plan.append((order[at:at + rows], rows, length))
      at += rows
  return plan


def _rows(count: int, full: int, multiple: int, known: list[int]) -> int:
  """Rows of the batches that `count` texts of one class are cut into.

  Of the numbers between half and all of what fits, the one that leaves the fewest
  rows to fill up; larger is better.
  """
  count, full = -(-count // multiple), max(full // multiple, 1)
  top = min(count, full)
  some = {r // multiple for r in known if not r % multiple and r <= 2 * full * multiple}
  some = some or {min(round_up(r), full) for r in range(-(-top // 2), top + 1)}
  return min(some, key=lambda r: (-count % r, -r)) * multiple


def _choices(lengths, max_length: int, known, most: int):
  """Yields ascending lists of lengths to pad to, with 0, 1, 2, ... new ones.

  Each is the best of its size: a shortest path over the grid of lengths, where
  the step from a to b costs padding all texts in (a, b] to b.
  """
  longest = int(lengths.max())
  free = {length for _, length in known if length <= max_length}
  sizes = {min(round_up(n), max_length) for n in np.unique(lengths).tolist()}
  grid = np.array(sorted(sizes | {f for f in free if f <= 2 * longest}))
  is_free = np.isin(grid, list(free))
  # held[j]: texts no longer than grid[j - 1].
  held = np.searchsorted(np.sort(lengths), grid, side='right')
  held = np.concatenate([[0], held])
  n = len(grid)
  cost = np.full((most + 1, n + 1), np.inf)  # [new lengths used, grid covered]
  came = np.zeros((most + 1, n + 1), np.int64)
  cost[:, 0] = 0
  for k in range(most + 1):
    for j in range(1, n + 1):
      new = 1 - int(is_free[j - 1])
      if new > k:
        continue
      total = cost[k - new, :j] + (held[j] - held[:j]) * grid[j - 1]
      came[k, j] = np.argmin(total)
      cost[k, j] = total[came[k, j]]
  covers_all = int(np.argmax(held == held[-1]))
  for k in range(most + 1):
    end = covers_all + int(np.argmin(cost[k, covers_all:]))
    if np.isfinite(cost[k, end]):
      yield _trace(came, is_free, grid, k, end)


def _trace(came, is_free, grid, k: int, j: int) -> list[int]:
  """Follows the shortest path back from [k, j]."""
  chosen = []
  while j:
    chosen.append(int(grid[j - 1]))
    j, k = int(came[k, j]), k - 1 + int(is_free[j - 1])
  return chosen[::-1]
