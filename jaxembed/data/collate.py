"""Batch collation: tokenised, padded or packed numpy arrays."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from jaxembed import types
from jaxembed.config import DataConfig
from jaxembed.data import pack, pairing
from jaxembed.data.choice import Row, choose
from jaxembed.data.ragged import Ragged
from jaxembed.data.records import BadRow
from jaxembed.data.teacher import Teacher
from jaxembed.data.tokenise import Tokenizer

__all__ = ['Counts', 'Row', 'choose', 'collate']


@dataclasses.dataclass(frozen=True)
class Counts:
  """What padding and cutting did to this process's part of a batch."""

  truncated_queries: int
  truncated_passages: int
  dropped_negatives: int  # equal to a positive of their own row
  empty_negatives: int  # places that rows with fewer negatives leave empty
  skipped_rows: int  # that cannot be used; their places are empty
  padding: float  # share of padded tokens


def collate(rows: Sequence[Row], local: np.ndarray, cfg: DataConfig,
            tokenizer: Tokenizer, shards: int = 1, *, known: int = 0,
            scored: bool = False, same: Mapping[int, int] | None = None,
            answers: Sequence[Mapping[int, np.ndarray]] = (),
            teachers: Sequence[Teacher | None] = ()) -> tuple[types.Batch, Counts]:
  """Tokenises and pads this process's rows of a batch.

  Passages stand in order of their queries, 1 + cfg.num_negatives places each;
  places that a row does not fill have owner -1: of a skipped row (Row.bad), whose texts
  are a token of padding, all of them.

  Args:
    rows: rows of the global batch: all of them or, without cfg.pack, those of `local`
      alone.
    local: [Q] the global places of this process's rows. `owner` counts globally.
    shards: over how many devices the global batch is split, for cfg.pack.
    known, scored, same, answers, teachers: see `pairing`.

  Returns:
    query [Q,T], passage [C,T] and pairing for Q = len(local), C = Q x (1 +
    num_negatives); each T is the shortest configured length that holds `rows`.
    With cfg.pack the texts of each device's share, in rows of their own.

  Raises:
    BadRow: a text leaves nothing to pool, or see `pairing`.
  """
  # Shapes are agreed upon over all rows given; only `local` ones are laid out.
  queries, passages = _encode(rows, cfg, tokenizer)
  # The first passage of each row.
  first: np.ndarray = np.cumsum([0, *(len(r.passages) for r in rows)])
  query, passage = queries, passages
  if len(rows) > len(local):
    query = queries.take(local)
    passage = passages.take(np.concatenate(
        [np.arange(int(first[i]), int(first[i + 1])) for i in local]))
    rows = [rows[i] for i in local]
  places = _places([len(r.passages) for r in rows], 1 + cfg.num_negatives)
  bad = np.array([bool(r.bad) for r in rows])
  own = np.where(np.repeat(bad, 1 + cfg.num_negatives), -1, places)
  pairs = pairing.pairing(rows, local, own, query, passage, cfg, tokenizer,
                          known=known, scored=scored, same=same, answers=answers,
                          teachers=teachers)
  if cfg.pack:
    tokens, query_at, passage_at = pack.share_rows(
        queries, passages, first, local, shards, width=cfg.pack,
        passages=1 + cfg.num_negatives, pad_id=tokenizer.pad_id)
    batch = types.PackedPairs(
        tokens, query_at, np.where(places >= 0, passage_at[places], 0), pairs)
  else:
    padded = tokenizer.pad(
        passage, _shortest(passages, cfg.passage_lengths), len(places))
    batch = types.PairBatch(
        tokenizer.pad(query, _shortest(queries, cfg.query_lengths)),
        _spread(padded, places), pairs)
  real = len(query.ids) + len(passage.ids)
  return batch, Counts(
      truncated_queries=int(query.truncated.sum()),
      truncated_passages=int(passage.truncated.sum()),
      dropped_negatives=sum(r.dropped for r in rows),
      empty_negatives=sum(r.empty for r in rows),
      skipped_rows=int(bad.sum()),
      padding=1 - real / sum(m.size for m in batch.masks))


def unreadable(row: Row, cfg: DataConfig, tokenizer: Tokenizer) -> str:
  """Why a row cannot be used: it is skipped, or a text leaves no token to pool; ''."""
  try:
    _tokens([row], cfg, tokenizer)
  except ValueError as error:
    return f'{row.where}: {error}'
  return row.bad


def _encode(rows: Sequence[Row], cfg: DataConfig, tokenizer: Tokenizer
            ) -> tuple[Ragged, Ragged]:
  """(queries, passages) of rows, cut to their sources' lengths."""
  try:
    return _tokens(rows, cfg, tokenizer)
  except ValueError:
    for row in rows:  # whose fault it is
      try:
        _tokens([row], cfg, tokenizer)
      except ValueError as error:
        raise BadRow(f'{row.where}: {error}') from error
    raise


def _tokens(rows, cfg: DataConfig, tokenizer: Tokenizer) -> tuple[Ragged, Ragged]:
  room = {side: [cfg.room(s, side) for s in cfg.sources]
          for side in ('query', 'passage')}
  good = [r for r in rows if not r.bad]
  query = tokenizer.encode(
      [r.query + r.query_suffix for r in good], [r.query_prompt for r in good],
      max_length=[room['query'][r.group] for r in good])
  passage = tokenizer.encode(
      [p for r in good for p in r.passages],
      [r.passage_prompt for r in good for _ in r.passages],
      max_length=[room['passage'][r.group] for r in good for _ in r.passages])
  if len(good) == len(rows):
    return query, passage
  return (_with_padding(query, [bool(r.bad) for r in rows], tokenizer.pad_id),
          _with_padding(passage, [bool(r.bad) for r in rows for _ in r.passages],
                        tokenizer.pad_id))


def _with_padding(found: Ragged, empty: Sequence[bool], pad_id: int) -> Ragged:
  """`found` with a row of one token of padding in each place that is empty."""
  none = np.asarray(empty)
  one = Ragged(np.array([pad_id], np.int32), np.array([0, 1]), np.zeros(1, np.int32),
               np.zeros(1, bool))
  return found.join(one).take(np.where(none, len(found), np.cumsum(~none) - 1))


def _places(counts: Sequence[int], room: int) -> np.ndarray:
  """For every passage place the passage that stands there, -1 for none: [C]."""
  there = np.asarray(counts)[:, None]
  first = np.concatenate([[0], np.cumsum(counts)[:-1]])
  at = np.arange(room)
  return np.where(at < there, first[:, None] + at, -1).ravel()


def _spread(tokens: types.Tokens, places: np.ndarray) -> types.Tokens:
  """Puts row places[i] at i; empty places take a row of padding.

  `tokens` has one row per place, its padding rows last: with an empty place there
  is at least one.
  """
  rows = np.where(places >= 0, places, len(places) - 1)
  return types.Tokens(tokens.ids[rows], tokens.mask[rows], tokens.pool[rows])


def _shortest(ragged: Ragged, lengths: Sequence[int]) -> int:
  longest = int(ragged.lengths.max())
  return next(n for n in lengths if n >= longest)
