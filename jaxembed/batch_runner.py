"""Batched encoding of one call's texts: sorted by length, in few compiled shapes."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import warnings

import jax
import numpy as np
from tqdm import tqdm

from jaxembed import (
  config,
  memory,
  quantize,
  sharding,
  side_by_side,
  similarity,
  types,
)
from jaxembed.data import pieces, tokenise
from jaxembed.data.length_batches import Batch, length_batches, padding_share
from jaxembed.data.ragged import Ragged
from jaxembed.mesh import SEQUENCE
from jaxembed.models import encoder

# Batches handed to the device before the oldest result is waited for; on a CPU at
# least two for each core.
_IN_FLIGHT = 8

# What is done with texts that are longer than the model's max_length.
LONG_TEXTS = ('cut', 'windows')

_encode = side_by_side.program(encoder.encode)
_states = side_by_side.program(encoder.hidden_states)


@dataclasses.dataclass(frozen=True)
class EncodeReport:
  """What the last call of `encode` did."""

  texts: int = 0
  tokens: int = 0
  truncated: int = 0  # texts cut to the model's max_length
  padding: float = 0.0  # share of the computed tokens that were padding
  shapes: tuple[tuple[int, int], ...] = ()  # (rows, tokens) that were computed
  empty: int = 0  # texts without a token to pool
  windowed: int = 0  # texts longer than max_length, read in windows

  def warn(self, max_length: int) -> None:
    """Tells the caller of `encode` what was cut and what had nothing to pool."""
    if self.truncated:
      warnings.warn(
          f'{self.truncated} of {self.texts} texts are longer than {max_length} tokens '
          'and were cut there; split them, read them in windows (long_texts='
          "'windows'), or raise max_seq_length if the model allows it", stacklevel=4)
    if self.empty:
      warnings.warn(
          f'{self.empty} of {self.texts} texts leave no token to pool and have the '
          'vector of an empty text', stacklevel=4)


@dataclasses.dataclass
class BatchRunner:
  """Sorts texts by length, cuts them into batches and computes these.

  Attributes:
    known: shapes (rows, tokens) that are compiled already; new ones are added.
    known_spans: the same of spans that are pooled (chunks.py).
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
  known_spans: set[tuple[int, int]] = dataclasses.field(default_factory=set)

  def vectors(self, items: list[str], prompt: str | Sequence[str], batch_size: int,
              dim: int, show_progress_bar: bool | None, long_texts: str = 'cut'
              ) -> np.ndarray:
    """The first `dim` dimensions of every text's vector: [n, dim] float32.

    prompt: one for all texts, or one for each.
    long_texts: 'windows' gives a text longer than max_length the mean of the vectors
      of its windows, before these are given length 1.
    """
    if long_texts == 'windows':
      return self._averaged(items, prompt, batch_size, show_progress_bar)[:, :dim]
    vectors = np.empty((len(items), dim), np.float32)
    with _bar(show_progress_bar, total=len(items), unit='text') as bar:
      for rows, _, found in self._batches(
          self._rows(items, prompt, 'cut'), batch_size, _encode):
        vectors[rows] = np.asarray(found)[:len(rows), :dim]
        bar.update(len(rows))
    return vectors

  def _averaged(self, items: list[str], prompt: str | Sequence[str], batch_size: int,
                show_progress_bar: bool | None) -> np.ndarray:
    """Means of the vectors of windows, with length 1 if the model's have it: [n, E]."""
    run = dataclasses.replace(self, cfg=dataclasses.replace(self.cfg, normalize=False))
    total = np.zeros((len(items), self.cfg.embedding_dim), np.float32)
    count = np.zeros((len(items), 1), np.float32)
    with _bar(show_progress_bar, unit='window') as bar:
      for rows, _, found in run._batches(
          self._rows(items, prompt, 'windows'), batch_size, _encode):
        np.add.at(total, rows, np.asarray(found)[:len(rows)])
        np.add.at(count, rows, 1)
        bar.update(len(rows))
    self.report = run.report
    mean = total / np.maximum(count, 1)
    return similarity.unit(mean) if self.cfg.normalize else mean

  def states(self, items: list[str], prompt: str, batch_size: int
             ) -> list[dict[str, np.ndarray]]:
    """Of every text: 'token_embeddings' [tokens, D] float32, 'input_ids' and
    'attention_mask' [tokens] int64."""
    found: list = [None] * len(items)
    for rows, tokens, states in self._batches(
        self._rows(items, prompt, 'cut'), batch_size, _states):
      states = np.asarray(states, np.float32)
      for place, row in enumerate(rows):
        mask = np.asarray(tokens.mask[place])
        found[row] = {'input_ids': tokens.ids[place][mask].astype(np.int64),
                      'attention_mask': np.ones(mask.sum(), np.int64),
                      'token_embeddings': states[place][mask]}
    return found

  def on_device(self, rows: Ragged, batch_size: int):
    """Yields (which of `rows`, tokens, states [B,T,D]) of batches, the states on the
    device."""
    return self._batches([(rows, np.arange(len(rows)))], batch_size, _states)

  def tokens(self, items: list[str], prompt: str | Sequence[str], first: int = 0
             ) -> Ragged:
    """Token ids of prompted texts, cut; a text without any has a row of length 0."""
    return self.tokenizer.encode(
        items, prompt, max_length=self.cfg.max_length, keep_empty=True, first=first)

  def _rows(self, items: list[str], prompt: str | Sequence[str], long_texts: str
            ) -> Iterator[tuple[Ragged, np.ndarray]]:
    """Rows of tokens and the text of each, `chunk` texts at a time."""
    for start in range(0, len(items), self.chunk):
      part = slice(start, start + self.chunk)
      prompts = prompt if isinstance(prompt, str) else prompt[part]
      if long_texts == 'windows':
        rows, owner = pieces.windows(self.tokenizer, items[part], prompts,
                                     self.cfg.max_length, start)
      else:
        rows = self.tokens(items[part], prompts, start)
        owner = np.arange(len(rows))
      yield rows, start + owner

  def _batches(self, parts: Iterable[tuple[Ragged, np.ndarray]], batch_size: int,
               compute):
    """Yields (texts, tokens, compute's result, on the device and padded at the end).

    parts: of `_rows`.
    """
    pending = collections.deque()
    stats = _EncodeStats()
    batch_size = self._within_memory(batch_size)
    with futures.ThreadPoolExecutor(self._cores) as pool:  # starts no thread by itself
      for ragged, owner in parts:
        plan = length_batches(
            np.maximum(ragged.lengths, 1), batch_size, self.cfg.max_length,
            known=self.known, row_multiple=self.row_multiple)
        stats.add(ragged, owner, plan)
        start = functools.partial(
            self._start, compute, pool if self._one_core_each(plan) else None)
        for rows, height, length in plan:
          self.known.add((height, length))
          width = -(-length // self._token_multiple) * self._token_multiple
          tokens = self.tokenizer.pad(ragged.take(rows), width, rows=height)
          with self._explained(tokens):
            wait = start(tokens)
          pending.append((owner[rows], tokens, wait))
          if len(pending) > max(_IN_FLIGHT, 2 * self._cores):
            yield self._done(*pending.popleft())
      self.report = stats.report()
      while pending:
        yield self._done(*pending.popleft())

  def _done(self, rows, tokens: types.Tokens, wait: Callable[[], jax.Array]):
    """A batch whose result is there: what fails on the device fails here."""
    with self._explained(tokens):
      return rows, tokens, wait()

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
  def row_multiple(self) -> int:
    """What the number of rows is a multiple of: the devices that share them."""
    return 1 if self.mesh is None else sharding.batch_shards(self.mesh)

  def _one_core_each(self, plan: Sequence[Batch]) -> bool:
    """Whether there are batches for all cores of a CPU, and memory for so many."""
    if self._cores == 1 or len(plan) < 2 * self._cores:
      return False
    largest = max(rows * length for _, rows, length in plan)
    return self._fits is None or self._cores * largest <= self._fits

  @functools.cached_property
  def _cores(self) -> int:
    """Cores that compute batches side by side; 1: they share what there is."""
    device = memory.device_of(self.params, self.mesh)
    here = self.mesh is None and device is not None and device.platform == 'cpu'
    return side_by_side.cores() if here else 1

  def _start(self, compute, pool: futures.Executor | None, tokens: types.Tokens
             ) -> Callable[[], jax.Array]:
    """Starts one batch, on a core of its own if there is a `pool`, and returns at once
    with what waits for its result."""
    if pool is not None:
      return pool.submit(lambda: compute(
          self.params, cfg=self.cfg, tokens=tokens, one_core=True
          ).block_until_ready()).result
    if self.mesh is not None:
      rows = jax.NamedSharding(self.mesh, jax.P(sharding.BATCH, None))
      tokens = jax.device_put(tokens, rows)
    with self.on_mesh():
      return compute(self.params, cfg=self.cfg, tokens=tokens).block_until_ready

  def on_mesh(self) -> contextlib.AbstractContextManager:
    """The context in which programs run."""
    return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


class _EncodeStats:
  """Sums over the chunks of one call."""

  def __init__(self):
    self.lengths, self.plan = [], []
    self.texts = self.truncated = self.empty = self.windowed = 0

  def add(self, ragged: Ragged, owner: np.ndarray, plan):
    """owner: the text of each row."""
    rows_of_text = np.unique(owner, return_counts=True)[1]
    self.lengths.append(ragged.lengths)
    self.plan += plan
    self.texts += len(rows_of_text)
    self.truncated += int(ragged.truncated.sum())
    self.empty += int((ragged.lengths == 0).sum())
    self.windowed += int((rows_of_text > 1).sum())

  def report(self) -> EncodeReport:
    lengths = np.concatenate(self.lengths) if self.lengths else np.zeros(0, int)
    return EncodeReport(
        texts=self.texts, tokens=int(lengths.sum()), truncated=self.truncated,
        padding=padding_share(lengths, self.plan),
        shapes=tuple(sorted({(rows, length) for _, rows, length in self.plan})),
        empty=self.empty, windowed=self.windowed)


def _bar(shown: bool | None, **options) -> tqdm:
  """A progress bar; None: on a terminal, once it takes seconds."""
  return tqdm(desc='encode', disable=None if shown is None else not shown,
              delay=3 if shown is None else 0, **options)


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
