"""Examples to one batch of numpy arrays."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxembed import types
from jaxembed.config import DataConfig, SourceConfig
from jaxembed.data import pack, prompts
from jaxembed.data.records import Example, text_id
from jaxembed.data.tokenise import Ragged, Tokenizer


@dataclasses.dataclass(frozen=True)
class Row:
  """What one example contributes to one step: every choice is made."""

  group: int  # place of its source in DataConfig.sources
  query: str
  passages: tuple[str, ...]  # the positive, then negatives
  query_prompt: str
  passage_prompt: str
  dropped: int  # negatives that equal a positive


@dataclasses.dataclass(frozen=True)
class Counts:
  """What padding and cutting did to this process's part of a batch."""

  truncated_queries: int
  truncated_passages: int
  dropped_negatives: int  # equal to a positive of their own row
  padding: float  # share of padded tokens


def choose(example: Example, group: int, source: SourceConfig, negatives: int,
           rng: np.random.Generator) -> Row:
  """Draws one positive, at most `negatives` negatives and an instruction.

  A negative whose text equals one of the row's positives is never taken. With
  fewer negatives than room, none is repeated.
  """
  positive = example.positives[rng.integers(len(example.positives))]
  right = {p.text for p in example.positives}
  wrong = [n.text for n in example.negatives if n.text not in right]
  if len(wrong) > negatives:
    wrong = [wrong[i] for i in np.sort(
        rng.choice(len(wrong), negatives, replace=False))]
  prompts.check_instruction(source, example)
  instruction = prompts.choose_instruction(
      example.instruction, source.instructions, rng)
  return Row(
      group=group, query=example.query, passages=(positive.text, *wrong),
      query_prompt=prompts.render(source.query_prompt, instruction),
      passage_prompt=prompts.render(source.passage_prompt, instruction),
      dropped=sum(n.text in right for n in example.negatives))


def collate(rows: Sequence[Row], mine: np.ndarray, cfg: DataConfig,
            tokenizer: Tokenizer, shards: int = 1
            ) -> tuple[types.Batch, Counts]:
  """Tokenises and pads this process's rows of a batch.

  Passages stand in order of their queries, 1 + cfg.num_negatives places each;
  places that a row does not fill have owner -1.

  Args:
    rows: rows of the global batch: all of them or, without cfg.pack, those of `mine`
      alone.
    mine: [Q] the global places of this process's rows. `owner` counts globally.
    shards: over how many devices the global batch is split, for cfg.pack.

  Returns:
    query [Q,T], passage [C,T] and pairing for Q = len(mine), C = Q x (1 +
    num_negatives); each T is the shortest configured length that holds `rows`.
    With cfg.pack the texts of each device's share, in rows of their own.
  """
  # Shapes are agreed upon over all rows given; only `mine` are laid out.
  queries, passages = _encode(rows, cfg, tokenizer)
  first = np.cumsum([0, *(len(r.passages) for r in rows)])  # passage of each row
  query, passage = queries, passages
  if len(rows) > len(mine):
    query = queries.take(mine)
    passage = passages.take(np.concatenate(
        [np.arange(first[i], first[i + 1]) for i in mine]))
    rows = [rows[i] for i in mine]
  places = _places([len(r.passages) for r in rows], 1 + cfg.num_negatives)
  pairing = _pairing(rows, mine, cfg, places)
  if cfg.pack:
    tokens, query_at, passage_at = pack.share_rows(
        queries, passages, first, mine, shards, width=cfg.pack,
        passages=1 + cfg.num_negatives, pad_id=tokenizer.pad_id)
    batch = types.PackedPairs(
        tokens, query_at, np.where(places >= 0, passage_at[places], 0), pairing)
  else:
    padded = tokenizer.pad(
        passage, _shortest(passages, cfg.passage_lengths), len(places))
    batch = types.PairBatch(
        tokenizer.pad(query, _shortest(queries, cfg.query_lengths)),
        _spread(padded, places), pairing)
  real = len(query.ids) + len(passage.ids)
  return batch, Counts(
      truncated_queries=int(query.truncated.sum()),
      truncated_passages=int(passage.truncated.sum()),
      dropped_negatives=sum(r.dropped for r in rows),
      padding=1 - real / sum(m.size for m in batch.masks))


def _encode(rows: Sequence[Row], cfg: DataConfig, tokenizer: Tokenizer
            ) -> tuple[Ragged, Ragged]:
  """(queries, passages) of rows, cut to their sources' lengths."""
  sources = [cfg.sources[r.group] for r in rows]
  query = tokenizer.encode(
      [r.query for r in rows], [r.query_prompt for r in rows],
      max_length=[s.query_max_length or cfg.query_lengths[-1] for s in sources])
  passage = tokenizer.encode(
      [p for r in rows for p in r.passages],
      [r.passage_prompt for r in rows for _ in r.passages],
      max_length=[s.passage_max_length or cfg.passage_lengths[-1]
                  for r, s in zip(rows, sources) for _ in r.passages])
  return query, passage


def _pairing(rows: Sequence[Row], mine: np.ndarray, cfg: DataConfig,
             places: np.ndarray) -> types.Pairing:
  filled = places >= 0
  ids = np.array([text_id(p) for r in rows for p in r.passages], np.int32)
  owner = np.repeat(mine.astype(np.int32), 1 + cfg.num_negatives)
  first = np.arange(len(places)) % (1 + cfg.num_negatives) == 0
  return types.Pairing(
      owner=np.where(filled, owner, -1).astype(np.int32),
      is_positive=first,
      query_id=np.array([text_id(r.query) for r in rows], np.int32),
      passage_id=np.where(filled, ids[places], 0).astype(np.int32),
      group=np.array([r.group for r in rows], np.int32),
      in_batch=np.array([cfg.sources[r.group].in_batch for r in rows], bool),
      temperature=np.array([cfg.sources[r.group].temperature for r in rows], np.float32)
      if any(s.temperature for s in cfg.sources) else None)


def _places(counts: Sequence[int], room: int) -> np.ndarray:
  """For every passage place the passage that stands there, -1 for none: [C]."""
  counts = np.asarray(counts)
  first = np.concatenate([[0], np.cumsum(counts)[:-1]])
  at = np.arange(room)
  return np.where(at < counts[:, None], first[:, None] + at, -1).ravel()


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
