"""Batched encoding of one call's texts: sorted by length, in few compiled shapes."""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import warnings

import jax
import numpy as np
from tqdm import tqdm

from jaxembed import config, memory, quantize, sharding, types
from jaxembed.data import tokenise
from jaxembed.data.length_batches import length_batches, padding_share
from jaxembed.mesh import SEQUENCE
from jaxembed.models import encoder

# Batches handed to the device before the oldest result is waited for.
_IN_FLIGHT = 8

_encode = jax.jit(encoder.encode, static_argnames='cfg')
_states = jax.jit(encoder.hidden_states, static_argnames='cfg')


@dataclasses.dataclass(frozen=True)
class EncodeReport:
  """What the last call of `encode` did."""

  texts: int = 0
  tokens: int = 0
  truncated: int = 0  # texts cut to the model's max_length
  padding: float = 0.0  # share of the computed tokens that were padding
  shapes: tuple[tuple[int, int], ...] = ()  # (rows, tokens), each compiled once
  empty: int = 0  # texts without a token to pool

  def warn(self, max_length: int) -> None:
    """Tells the caller of `encode` what was cut and what had nothing to pool."""
    if self.truncated:
      warnings.warn(
          f'{self.truncated} of {self.texts} texts are longer than {max_length} tokens '
          'and were cut there; split them, or raise max_seq_length if the model allows '
          'it', stacklevel=4)
    if self.empty:
      warnings.warn(
          f'{self.empty} of {self.texts} texts leave no token to pool and have the '
          'vector of an empty text', stacklevel=4)


@dataclasses.dataclass
class BatchRunner:
  """Sorts texts by length, cuts them into batches and computes these.

  Attributes:
    known: shapes (rows, tokens) that are compiled already; new ones are added.
    chunk: texts tokenised, sorted and batched at a time.
    report: of the last run; of nothing before.
  """

  params: types.Params
  cfg: config.ModelConfig
  tokenizer: tokenise.Tokenizer
  mesh: jax.sharding.Mesh | None
  known: set[tuple[int, int]] = dataclasses.field(default_factory=set)
  chunk: int = 16384
  report: EncodeReport = EncodeReport()

  def vectors(self, items: list[str], prompt: str | Sequence[str], batch_size: int,
              dim: int, show_progress_bar: bool | None) -> np.ndarray:
    """The first `dim` dimensions of every text's vector: [n, dim] float32.

    prompt: one for all texts, or one for each.
    """
    vectors = np.empty((len(items), dim), np.float32)
    quiet = None if show_progress_bar is None else not show_progress_bar
    with tqdm(total=len(items), unit='text', desc='encode', disable=quiet,
              delay=3 if show_progress_bar is None else 0) as bar:
      for rows, _, found in self._batches(items, prompt, batch_size, _encode):
        vectors[rows] = np.asarray(found)[:len(rows), :dim]
        bar.update(len(rows))
    return vectors

  def states(self, items: list[str], prompt: str, batch_size: int
             ) -> list[dict[str, np.ndarray]]:
    """Of every text: 'token_embeddings' [tokens, D] float32, 'input_ids' and
    'attention_mask' [tokens] int64."""
    found: list = [None] * len(items)
    for rows, tokens, states in self._batches(items, prompt, batch_size, _states):
      states = np.asarray(states, np.float32)
      for place, row in enumerate(rows):
        mask = np.asarray(tokens.mask[place])
        found[row] = {'input_ids': tokens.ids[place][mask].astype(np.int64),
                      'attention_mask': np.ones(mask.sum(), np.int64),
                      'token_embeddings': states[place][mask]}
    return found

  def tokens(self, items: list[str], prompt: str | Sequence[str], first: int = 0
             ) -> tokenise.Ragged:
    """Token ids of prompted texts, cut; a text without any has a row of length 0."""
    return self.tokenizer.encode(
        items, prompt, max_length=self.cfg.max_length, keep_empty=True, first=first)

  def _batches(self, items: list[str], prompt: str | Sequence[str], batch_size: int,
               compute):
    """Yields (rows, tokens, compute's result, on the device and padded at the end)."""
    pending = collections.deque()
    stats = _EncodeStats()
    batch_size = self._within_memory(batch_size)
    for start in range(0, len(items), self.chunk):
      part = slice(start, start + self.chunk)
      ragged = self.tokens(
          items[part], prompt if isinstance(prompt, str) else prompt[part], start)
      plan = length_batches(
          np.maximum(ragged.lengths, 1), batch_size, self.cfg.max_length,
          known=self.known, row_multiple=self._row_multiple)
      stats.add(ragged, plan)
      for rows, height, length in plan:
        self.known.add((height, length))
        width = -(-length // self._token_multiple) * self._token_multiple
        tokens = self.tokenizer.pad(ragged.take(rows), width, rows=height)
        with self._explained(tokens):
          found = self._dispatch(compute, tokens)
        pending.append((start + rows, tokens, found))
        if len(pending) > _IN_FLIGHT:
          yield self._done(*pending.popleft())
    self.report = stats.report(len(items))
    while pending:
      yield self._done(*pending.popleft())

  def _done(self, rows, tokens: types.Tokens, found: jax.Array):
    """A batch whose result is there: what fails on the device fails here."""
    with self._explained(tokens):
      return rows, tokens, found.block_until_ready()

  def _explained(self, tokens: types.Tokens):
    height, length = tokens.ids.shape
    fits = self._fits
    return memory.explained(
        f'{height} texts of {length} tokens at a time are too much for it'
        f'{"" if fits is None else f" (about {fits} tokens should fit)"}; give encode '
        f'a batch_size below {max(height * length // 64, 1)}, cut texts earlier '
        "(max_seq_length), or load the model with dtype='bfloat16'")

  def _within_memory(self, batch_size: int) -> int:
    """`batch_size`, or less where so many tokens do not fit the device."""
    fits = self._fits
    return batch_size if fits is None else max(min(batch_size, fits // 64), 1)

  @functools.cached_property
  def _fits(self) -> int | None:
    return memory.forecast(self.cfg, self.params, mesh=self.mesh).tokens

  @property
  def _token_multiple(self) -> int:
    """What rows are padded to a multiple of: the devices that split their tokens."""
    return 1 if self.mesh is None else self.mesh.shape.get(SEQUENCE, 1)

  @property
  def _row_multiple(self) -> int:
    return 1 if self.mesh is None else sharding.batch_shards(self.mesh)

  def _dispatch(self, compute, tokens: types.Tokens) -> jax.Array:
    """Starts one batch; returns at once."""
    if self.mesh is None:
      return compute(self.params, cfg=self.cfg, tokens=tokens)
    rows = jax.NamedSharding(self.mesh, jax.P(sharding.BATCH, None))
    with jax.set_mesh(self.mesh):
      return compute(self.params, cfg=self.cfg, tokens=jax.device_put(tokens, rows))


class _EncodeStats:
  """Sums over the chunks of one call."""

  def __init__(self):
    self.lengths, self.plan, self.truncated, self.empty = [], [], 0, 0

  def add(self, ragged: tokenise.Ragged, plan):
    self.lengths.append(ragged.lengths)
    self.plan += plan
    self.truncated += int(ragged.truncated.sum())
    self.empty += int((ragged.lengths == 0).sum())

  def report(self, texts: int) -> EncodeReport:
    lengths = np.concatenate(self.lengths) if self.lengths else np.zeros(0, int)
    return EncodeReport(
        texts=texts, tokens=int(lengths.sum()), truncated=self.truncated,
        padding=padding_share(lengths, self.plan),
        shapes=tuple(sorted({(rows, length) for _, rows, length in self.plan})),
        empty=self.empty)


def per_token(run: BatchRunner, items: list[str], prompt: str, batch_size: int,
              dim: int, output_value: str | None, precision: str) -> list:
  """For 'token_embeddings' a list of [tokens, D], for None a list of dicts."""
  if output_value not in ('token_embeddings', None):
    raise ValueError(f'output_value is {output_value!r}; choose '
                     "'sentence_embedding', 'token_embeddings' or None")
  if output_value is None and precision != 'float32':
    raise TypeError(f'output_value=None gives all there is as it is, so precision '
                    f'{precision!r} has nothing to act on; leave one of them out')
  found = run.states(items, prompt, batch_size)
  if output_value == 'token_embeddings':
    return quantize.quantize_all([f[output_value] for f in found], precision)
  vectors = run.vectors(items, prompt, batch_size, dim, False)
  return [f | {'sentence_embedding': v} for f, v in zip(found, vectors)]
