"""Examination of data before training: what is wrong with it, what it costs."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import itertools

import numpy as np

from jaxembed.config import DataConfig, Reads, SourceConfig
from jaxembed.data import feed, memory, mixture, prompts, sources
from jaxembed.data.fields import BadFile, BadRow
from jaxembed.data.overlap import Overlap
from jaxembed.data.records import Example
from jaxembed.data.tokenise import Tokenizer

_SHOWN = 20  # bad rows, and rows that an evaluation set has too
_LENGTHS = 2000  # rows whose texts are tokenised
_BATCHES = 4  # of which padding is told
_LONGEST = 8  # times the room that a text has; a longer one is not tokenised whole


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of one side's texts, in some rows spread evenly.

  Attributes:
    tokens: [N] int64, prompt and special tokens included.
    room: tokens that a text may have.
  """

  tokens: np.ndarray
  room: int

  @property
  def truncated(self) -> float:
    """Share of texts that are cut."""
    return float((self.tokens > self.room).mean()) if len(self.tokens) else 0.0

  def quantiles(self, shares: Sequence[float] = (0.5, 0.9, 0.99, 1.0)) -> list[int]:
    """Lengths that these shares of texts do not exceed."""
    return np.quantile(self.tokens, shares, method='higher').astype(int).tolist()


@dataclasses.dataclass(frozen=True)
class SourceReport:
  """What was found in a source.

  Attributes:
    bad: 'file:line: what is wrong' of the first bad rows.
    overlap: by evaluation set, how many rows share an 8-gram with it, and where the
      first ones stand.
  """

  name: str
  rows: int
  read: int
  bad_count: int
  bad: tuple[str, ...]
  skipped: bool  # whether bad rows are passed over
  same_rows: int  # rows whose query and positives came before
  same_queries: int  # rows whose query came before
  query: Lengths
  passage: Lengths
  overlap: Mapping[str, tuple[int, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class DataReport:
  """What was found in a stage's data.

  Attributes:
    padding: share of padded tokens in the first batches; None where none can be made.
    candidates: passages that a query is compared with, on average; None likewise.
    notes: see Mixture.notes.
  """

  sources: tuple[SourceReport, ...]
  padding: float | None
  candidates: float | None
  notes: tuple[str, ...]

  @property
  def unusable(self) -> int:
    """Bad rows that would end a run."""
    return sum(s.bad_count for s in self.sources if not s.skipped)


def examine(cfg: DataConfig, tokenizer: Tokenizer, *, seed: int = 0,
            against: Mapping[str, Sequence[str]] | None = None,
            given: memory.Rows | None = None, reads: Reads | None = None
            ) -> DataReport:
  """Reads the rows that a start would check (cfg.check_rows; 0: all) and reports.

  Args:
    against: by name, the texts of evaluation sets to look for in the rows.
    given: by name of a source of kind 'memory', its rows.
    reads: what the loss reads of rows; None: it is not known.

  Raises:
    BadFile, FileNotFoundError: a file cannot be read at all.
  """
  known = {name: Overlap(texts) for name, texts in (against or {}).items()}
  found, good = zip(*(_source(s, cfg, tokenizer, known, given) for s in cfg.sources))
  lenient = dataclasses.replace(cfg, prefetch=0, sources=[
      dataclasses.replace(s, on_bad_row='skip') for s in cfg.sources])
  try:
    opened = mixture.open_mixture(lenient, given=given)
    padding, candidates = _batches(dataclasses.replace(opened, sources=tuple(
        _without_bad_rows(s, places) for s, places in zip(opened.sources, good))),
        tokenizer, seed)
  except ValueError as error:  # nothing that a batch could be made of
    return DataReport(found, None, None, (str(error),))
  notes = [n for n in opened.notes(reads) if 'cannot be used' not in n]
  if reads is not None:
    try:
      opened.check_scores(reads)
    except ValueError as error:
      notes.insert(0, f'a run is refused: {error}')
  return DataReport(found, padding, candidates, tuple(notes))


def _source(cfg: SourceConfig, data: DataConfig, tokenizer: Tokenizer,
            known: Mapping[str, Overlap], given: memory.Rows | None
            ) -> tuple[SourceReport, list[int]]:
  """(What was found in a source, the places of its good rows where one is bad)."""
  strict = dataclasses.replace(cfg, on_bad_row='skip')
  rows = sources.plain(sources.load(strict, given=given))
  errors: list[str] = []
  if skipped := getattr(rows, 'skipped', None):
    errors += [skipped.first] if skipped.count else []
  places = sources.spread(len(rows), data.check_rows or len(rows))
  seen, asked, good = set(), set(), []
  bad = skipped.count if skipped else 0
  hits: dict[str, list[str]] = {name: [] for name in known}
  kept: list[Example] = []
  step = -(-len(places) // _LENGTHS)
  for at, i in enumerate(places):
    try:
      row = rows[i]
      prompts.check_instruction(cfg, row)
    except BadFile:
      raise
    except BadRow as error:
      bad, errors = bad + 1, [*errors, str(error)][:_SHOWN]
      continue
    good.append(i)
    seen.add(_hash(row.query, *sorted(p.text for p in row.positives)))
    asked.add(_hash(row.query))
    kept += [row] if at % step == 0 else []
    for name, overlap in known.items():
      if any(t in overlap for t in (row.query, *(p.text for p in row.positives))):
        hits[name].append(row.where or f'{cfg.name}[{i}]')
  return SourceReport(
      name=cfg.name, rows=len(rows), read=len(places), bad_count=bad,
      bad=tuple(errors), skipped=cfg.on_bad_row == 'skip',
      same_rows=len(good) - len(seen), same_queries=len(good) - len(asked),
      query=_lengths([r.query for r in kept], 'query', cfg, data, tokenizer),
      passage=_lengths([p.text for r in kept for p in r.positives + r.negatives],
                       'passage', cfg, data, tokenizer),
      overlap={name: (len(at), tuple(at[:_SHOWN])) for name, at in hits.items()}), (
          good if len(good) < len(places) else [])


class _Some(Sequence):
  """The rows at these places."""

  def __init__(self, rows: Sequence[Example], places: Sequence[int]):
    self._rows, self._places = rows, places

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, i: int) -> Example:
    return self._rows[self._places[i]]


def _without_bad_rows(source: mixture.Source, good: list[int]) -> mixture.Source:
  """The source with the good ones of the rows that were read, where others are bad."""
  rows = sources.plain(source.rows)
  if not good or rows is not source.rows:
    return source
  return dataclasses.replace(source, opened=dataclasses.replace(
      source.opened, rows=_Some(rows, good)))


def _lengths(texts: list[str], side: str, cfg: SourceConfig, data: DataConfig,
             tokenizer: Tokenizer) -> Lengths:
  room = data.room(cfg, side)
  prompt = prompts.rendered(getattr(cfg, f'{side}_prompt'), cfg)[0]
  found = tokenizer.encode(texts, prompt, max_length=_LONGEST * room, keep_empty=True)
  return Lengths(np.asarray(found.lengths), room)


def _batches(opened: mixture.Mixture, tokenizer: Tokenizer, seed: int
             ) -> tuple[float, float]:
  """(share of padding, candidates of a query) in the first batches."""
  padding, candidates = [], []
  for batch, info in itertools.islice(
      feed.batches(opened, tokenizer, seed=seed), _BATCHES):
    pair = batch.pairing
    own = np.bincount(pair.owner[pair.owner >= 0], minlength=len(pair.in_batch))
    candidates.append(np.where(pair.in_batch, own.sum(), own).mean())
    padding.append(info.counts.padding)
  return float(np.mean(padding)), float(np.mean(candidates))


def _hash(*texts: str) -> int:
  found = hashlib.blake2b(digest_size=8)
  for text in texts:
    found.update(text.encode('utf-8', 'surrogatepass') + b'\0')
  return int.from_bytes(found.digest(), 'little')
