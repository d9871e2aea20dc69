"""Late chunking: one pass over a text, one vector for each of its spans."""

from collections.abc import Iterable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxembed import texts
from jaxembed.batch_runner import BatchRunner
from jaxembed.data import pieces, ragged
from jaxembed.data.length_batches import length_batches
from jaxembed.data.ragged import Ragged
from jaxembed.models import encoder

Spans = Sequence[tuple[int, int]]

_encode_spans = jax.jit(encoder.encode_spans, static_argnames=('cfg', 'width'))


def check_sizes(chunk_tokens: Any, overlap: Any) -> None:
  """Raises ValueError for sizes that make no chunks."""
  texts.check_count('chunk_tokens', chunk_tokens)
  if isinstance(overlap, bool) or not isinstance(overlap, int) or not (
      0 <= overlap < chunk_tokens):
    raise ValueError(f'overlap {overlap!r} is not from 0 to {chunk_tokens - 1}, less '
                     f'than chunk_tokens ({chunk_tokens})')


def check_spans(spans: Any, items: Sequence[str]) -> list[list[pieces.Span]]:
  """`spans` as a list for each of the texts.

  Raises:
    TypeError: no lists of pairs of whole numbers.
    ValueError: another number of lists than of texts, or a span that is empty or lies
      outside its text; names both by their numbers.
  """
  if not isinstance(spans, Iterable) or isinstance(spans, str | bytes):
    raise TypeError(f'spans is {type(spans).__name__}; give a list of (start, end) for '
                    'each text')
  lists: list[Any] = list(spans)
  if len(lists) != len(items):
    raise ValueError(f'spans has {len(lists)} lists for {len(items)} texts; give one '
                     'for each, maybe empty')
  return [[_span(span, f'span {j} of text {i}', len(text))
           for j, span in enumerate(_listed(found, i))]
          for i, (found, text) in enumerate(zip(lists, items))]


def _listed(found: Any, i: int) -> list[Any]:
  if not isinstance(found, Iterable) or isinstance(found, str | bytes):
    raise TypeError(f'the spans of text {i} are {type(found).__name__} {found!r:.40}; '
                    'give a list of (start, end)')
  return list(found)


def _span(span: Any, what: str, size: int) -> pieces.Span:
  pair = tuple(span) if isinstance(span, Iterable) else ()
  if len(pair) != 2 or not all(isinstance(x, int | np.integer)
                               and not isinstance(x, bool) for x in pair):
    raise TypeError(f'{what} is {span!r:.40}; give (start, end), two whole numbers')
  start, end = map(int, pair)
  if not 0 <= start < end <= size:
    raise ValueError(f'{what} is ({start}, {end}), which is empty or outside the text '
                     f'of {size} characters; give 0 <= start < end <= {size}')
  return start, end


class Parts(NamedTuple):
  """Texts and the parts of them that vectors are asked for."""

  rows: Ragged  # the tokens of every text
  spans: list[list[pieces.Span]]  # of characters
  tokens: list[np.ndarray]  # [n,2] of each text, the tokens of its spans


def parts(run: BatchRunner, items: Sequence[str], prompt: str,
          spans: list[list[pieces.Span]] | None, chunk_tokens: int | None, overlap: int
          ) -> Parts:
  """The tokens of texts and of spans of them; spans None: of every chunk_tokens.

  Raises:
    ValueError: a text of more tokens than the model reads, or a span without a token.
  """
  rows, found, tokens = [], [], []
  for i, ids, at, _ in pieces.located(run.tokenizer, items, prompt):
    if len(ids) > run.cfg.max_length:
      raise ValueError(
          f'text {i} has {len(ids)} tokens, and one pass reads '
          f'{run.cfg.max_length}; raise max_seq_length if the model allows it, load '
          'it with a length method (length=), or split the text')
    chars = spans[i] if spans is not None else pieces.spans_of(
        at, chunk_tokens or 1, overlap)
    own = np.array([pieces.tokens_of(span, at) for span in chars], np.int32)
    own = own.reshape(-1, 2)
    for j, (first, last) in enumerate(own):
      if first == last:
        raise ValueError(f'span {j} of text {i} {tuple(chars[j])} holds no token '
                         f'({items[i][slice(*chars[j])]!r:.40}); leave it out')
    rows.append(ids)
    found.append(chars)
    tokens.append(own)
  return Parts(ragged.of_rows(rows), found, tokens)


def vectors(run: BatchRunner, asked: Parts, batch_size: int) -> list[np.ndarray]:
  """Vectors [n,E] of the given spans of every text."""
  width, tokens = run.cfg.embedding_dim, asked.tokens
  found = [np.zeros((len(own), width), np.float32) for own in tokens]
  with_spans = [i for i, own in enumerate(tokens) if len(own)]
  for rows, batch, states in run.on_device(
      asked.rows.take(with_spans), batch_size):
    texts_ = [with_spans[r] for r in rows]
    # Padding may stand on the left.
    left = np.argmax(np.asarray(batch.mask), axis=1)[:len(rows)]
    spans = np.concatenate([
        np.column_stack([np.full(len(tokens[i]), place), tokens[i][:, 0] + left[place],
                         np.diff(tokens[i], axis=1)[:, 0]])
        for place, i in enumerate(texts_)]).astype(np.int32)
    owner = np.concatenate([np.column_stack([np.full(len(tokens[i]), i),
                                             np.arange(len(tokens[i]))])
                            for i in texts_])
    for part, value in _pooled(run, states, spans):
      for (i, j), vector in zip(owner[part], value):
        found[i][j] = vector
  return found


def _pooled(run: BatchRunner, states: jax.Array, spans: np.ndarray):
  """Yields (which of `spans` [P,3], their vectors), in batches of few shapes."""
  plan = length_batches(spans[:, 2], max(states.shape[0] * states.shape[1] // 64, 1),
                        states.shape[1], row_multiple=run.row_multiple,
                        known=run.known_spans)
  for part, height, width in plan:
    run.known_spans.add((height, width))
    row, first, count = np.pad(spans[part], ((0, height - len(part)), (0, 0))).T
    pool = functools.partial(_encode_spans, run.params, cfg=run.cfg, width=width)
    with run.on_mesh():
      value = pool(hidden=states, row=row, first=first, count=count)
    yield part, np.asarray(value)[:len(part)]
