"""In-context examples in front of queries (BGE-EN-ICL, Li et al. 2024).

An example is another row of the same source in the batch: its prompt and query, the
source's `response` mark, its positive and an empty line. Documents stay as they are, so
that their vectors do not depend on examples.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxembed.config import DataConfig
from jaxembed.data.choice import Row
from jaxembed.data.tokenise import Tokenizer

_BETWEEN = '\n\n'


def asked(cfg: DataConfig) -> bool:
  """Whether rows take examples from others of their batch."""
  return any(s.in_context for s in cfg.sources)


def with_examples(rows: Sequence[Row], cfg: DataConfig, tokenizer: Tokenizer, seed: int,
                  step: int) -> list[Row]:
  """Rows of a whole batch with examples in front and the response mark behind.

  How many is drawn from 0 to the source's `in_context`, anew each step. Adding stops
  where a query would be cut for the sake of an example; a query that is too long by
  itself is cut so that the mark stays. A row that asks the same, or has the same
  positive, is no example.
  """
  return [_one(i, rows, cfg, tokenizer, np.random.default_rng((seed, step, i, 1)))
          if cfg.sources[row.group].in_context and not row.bad else row
          for i, row in enumerate(rows)]


def _one(i: int, rows: Sequence[Row], cfg: DataConfig, tokenizer: Tokenizer,
         rng: np.random.Generator) -> Row:
  row, source = rows[i], cfg.sources[rows[i].group]
  room = cfg.room(source, 'query') - sum(tokenizer.frame)
  query = _cut(row, source.response, room, tokenizer)
  own = {row.passages[0], *row.known}
  others = [r for k, r in enumerate(rows) if k != i and r.group == row.group
            and not r.bad and r.query != row.query and r.passages[0] not in own]
  count = min(int(rng.integers(source.in_context + 1)), len(others))
  before = ''
  for k in rng.choice(len(others), count, replace=False) if count else ():
    other = others[k]
    more = (before + other.query_prompt + other.query + source.response
            + other.passages[0] + _BETWEEN)
    if tokenizer.count(more + row.query_prompt + query + source.response) > room:
      break
    before = more
  return dataclasses.replace(row, query=query, query_suffix=source.response,
                             query_prompt=before + row.query_prompt)


def _cut(row: Row, response: str, room: int, tokenizer: Tokenizer) -> str:
  """The row's query, or its longest beginning that leaves room for the mark."""
  def fits(size: int) -> bool:
    text = row.query_prompt + row.query[:size] + response
    return tokenizer.count(text) <= room

  if fits(len(row.query)):
    return row.query
  low, high = 1, len(row.query)  # a beginning that fits, one that does not
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return row.query[:low]
