"""Survey of a source's first rows: positives, negatives, scores, instructions."""

import collections
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from jaxembed.config import Reads, SourceConfig
from jaxembed.data import bad_rows, choice, labelled, prompts, repeats, sources
from jaxembed.data.records import BadRow, Example, text_id

# Rows looked at where none are to be checked; bad ones are passed over then.
_UNCHECKED = 1000


@dataclasses.dataclass(frozen=True)
class Survey:
  """Counts over the rows that were read."""

  checked: int = 0
  instructed: int = 0  # with an instruction of their own
  bare: Example | None = None  # the first without one
  with_negatives: int = 0
  most_negatives: int = 0  # of a row
  most_positives: int = 1
  scored: int = 0  # with a teacher's scores
  quoted: int = 0  # whose query stands in quotation marks
  compared: int = 0  # with two or more, which may stand side by side
  # Of queries that come in several rows, their positives in all of them.
  answers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  # Of the data's ids that stand for several texts, those texts.
  same_texts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  bad: bad_rows.Skipped = dataclasses.field(default_factory=bad_rows.Skipped)
  symmetric: int = 0  # of a type for which FlagEmbedding treats both sides alike

  def check(self, source: SourceConfig) -> None:
    """Raises ValueError if no row read can be used, or teach anything."""
    if self.bad.count and not self.checked:
      raise BadRow(f'source {source.name!r}: none of the {self.bad.count} rows read '
                   f'can be used, first {self.bad.first}')
    if source.rows == 'pairs' and not source.in_batch and not self.with_negatives:
      raise ValueError(
          f'source {source.name!r} has in_batch off, and none of the {self.checked} '
          'rows read brings a hard negative, so that they would teach nothing; set '
          'in_batch')

  def teaching(self, scores: int) -> int:
    """Rows of which at least so many passages (1, 2) have scores."""
    return self.compared if scores > 1 else self.scored

  def notes(self, source: SourceConfig, negatives: int, reads: Reads | None
            ) -> list[str]:
    """What rows bring and nothing uses; see Mixture.notes.

    Args:
      negatives: how many a row may have.
    """
    found, of = [], f'of {self.checked} rows read'
    if self.with_negatives and not negatives:
      found.append(f'{self.with_negatives} {of} bring hard negatives (up to '
                   f'{self.most_negatives}), and num_negatives=0 uses none of them; '
                   'set num_negatives')
    elif source.rows == 'bm25' and not negatives:
      found.append("rows='bm25' finds hard negatives, and num_negatives=0 uses none of "
                   'them; set num_negatives')
    elif source.rows == 'pairs' and self.checked and self.most_negatives < negatives:
      found.append(f'rows bring at most {self.most_negatives} hard negatives, and '
                   f'num_negatives={negatives} makes room for more: empty places cost '
                   'as much as texts')
    without = self.checked - self.with_negatives
    if source.rows == 'pairs' and not source.in_batch and without:
      found.append(f'{without} {of} bring no hard negative, and with in_batch off they '
                   'teach nothing')
    if self.instructed and not (
        prompts.asks(source, 'query') or prompts.asks(source, 'passage')):
      found.append(f'{self.instructed} {of} bring an instruction or prompt of their '
                   "own, and no template asks for it; set query_prompt with "
                   "'{instruction}'")
    scored = reads if reads is not None and reads.scores > 0 else None
    if self.scored and reads is not None and scored is None:
      found.append(f'{self.scored} {of} bring scores of a teacher, which the loss does '
                   'not read')
    if source.teacher:  # whose cosines are scores where rows lack them
      scored = None
    if scored and self.teaching(scored.scores) < self.checked:
      few = 'fewer than two passages with' if scored.scores > 1 else 'no passage with'
      found.append(f'{self.checked - self.teaching(scored.scores)} {of} have {few} '
                   "a teacher's score, and teach nothing"
                   + ('' if scored.alone else ' to the loss by scores'))
    if scored and source.symmetric:
      found.append('symmetric: rows the other way round have no scores, and teach '
                   'nothing')
    if (source.kind in ('tsv', 'csv') and not source.quoted
        and 2 * self.quoted > self.checked):
      found.append(f'{self.quoted} {of} have a query in quotation marks, which stay: '
                   'cells are what stands between delimiters; quoted=True takes them '
                   'off')
    if self.symmetric and source.query_prompt != source.passage_prompt:
      found.append(f'{self.symmetric} {of} are of a type (symmetric_...) whose '
                   'passages FlagEmbedding gives the prompt of queries; set '
                   'passage_prompt too')
    if self.bad.count:
      found.append(f'{self.bad.count} rows cannot be used and '
                   + ('are skipped' if source.on_bad_row == 'skip' else
                      'will end the run where they come')
                   + f', first {self.bad.first}')
    if self.same_texts:
      found.append(f'{len(self.same_texts)} ids stand for several texts, which count '
                   f'as one (first {next(iter(self.same_texts))!r:.60})')
    return found


def survey(rows: Sequence[Example], check_rows: int, cfg: SourceConfig) -> Survey:
  """Reads `check_rows` rows of a source, spread evenly.

  Without a number 1,000 are looked at and bad ones passed over.

  Raises:
    BadRow: a checked row cannot be used, where that is to end a run.
  """
  if isinstance(rows, labelled.Labelled):  # negatives are drawn, never too few
    bare = [i for i, text in enumerate(rows.instructions) if not text]
    return Survey(len(rows), len(rows) - len(bare), rows[bare[0]] if bare else None,
                  bad=rows.skipped)
  opened: tuple[Any, ...] = rows, sources.plain(rows)
  bad = next((dataclasses.replace(r.skipped) for r in opened
              if hasattr(r, 'skipped')), bad_rows.Skipped())
  count = collections.Counter()
  most_negatives, most_positives, bare = 0, 1, None
  hashes: dict[str, int] = {}  # of an id's text
  torn: set[str] = set()  # ids with several texts
  again = repeats.Repeats(cfg.symmetric)
  for row in _read(rows, check_rows, cfg, bad):
    again.see(row)
    negatives = len(choice.usable(row.positives, row.negatives))
    count.update(checked=1, instructed=bool(row.instruction), scored=row.scored,
                 compared=_compared(row), with_negatives=negatives > 0,
                 symmetric=row.type.startswith('symmetric'),
                 quoted=len(row.query) > 1 and row.query[0] == row.query[-1] == '"')
    most_negatives = max(most_negatives, negatives)
    most_positives = max(most_positives, len(row.positives))
    bare = bare or (None if row.instruction else row)
    torn.update(p.id for p in row.positives + row.negatives
                if p.id and hashes.setdefault(p.id, text_id(p.text)) != text_id(p.text))
  counts = {name: int(n) for name, n in count.items()}
  return Survey(**counts, bare=bare, most_negatives=most_negatives,
                most_positives=most_positives,
                answers=again.answers(_read(rows, check_rows, cfg)), bad=bad,
                same_texts=_texts_of(
                    torn, _read(rows, check_rows, cfg) if torn else ()))


def _compared(row: Example) -> bool:
  """Whether two passages that a step may draw together, one positive, have scores."""
  usable = choice.usable(row.positives, row.negatives)
  positives, negatives = ([p.score is not None for p in passages]
                          for passages in (row.positives, usable))
  return any(positives) + sum(negatives) >= 2


def _texts_of(ids: Collection[str], rows: Iterable[Example]
              ) -> dict[str, tuple[str, ...]]:
  found = collections.defaultdict(dict)
  for row in rows:
    for passage in row.positives + row.negatives:
      if passage.id in ids:
        found[passage.id][passage.text] = None
  return {key: tuple(texts) for key, texts in found.items()}


def _read(rows: Sequence[Example], check_rows: int, cfg: SourceConfig,
          bad: bad_rows.Skipped | None = None) -> Iterator[Example]:
  rows = sources.plain(rows)
  if not check_rows:
    cfg = dataclasses.replace(cfg, on_bad_row='skip')
  places = sources.spread(len(rows), check_rows or _UNCHECKED)
  for _, row in bad_rows.good(places, rows.__getitem__, cfg, bad):
    yield row
