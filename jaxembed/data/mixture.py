"""Mixture of a stage's datasets, opened once, with a survey and fingerprints."""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from jaxembed.config import DataConfig, Reads, SourceConfig, StageConfig
from jaxembed.data import (
    bad_rows,
    memory,
    prompts,
    reads_of,
    repeats,
    sampling,
    sources,
    survey,
)
from jaxembed.data.choice import Row, choose, empty
from jaxembed.data.fingerprint import fingerprint
from jaxembed.data.records import Example
from jaxembed.data.teacher import Teacher
from jaxembed.data.text_ids import text_ids
from jaxembed.data.tokenise import Tokenizer

# The fields of a source that say which rows there are.
_CONTENT = ('kind', 'rows', 'path', 'paths', 'split', 'subset', 'data_dir', 'cache_dir',
            'header', 'quoted', 'delimiter', 'columns', 'score_column', 'on_bad_row',
            'limit', 'symmetric', 'min_score', 'max_negative_score')
# Known positives of a row, from which on comparing them all is worth a word.
_MANY = 32
# Rows whose texts are looked for among the teacher's.
_TAUGHT = 1000

# What losses read: no scores, or those of a row's passages.
_NOTHING, _BY_SCORES = Reads(), Reads(scores=2)


@dataclasses.dataclass(frozen=True)
class Opened:
  """The rows that a source reads, whatever the rules of a stage for them."""

  cfg: SourceConfig
  rows: Sequence[Example]
  seen: survey.Survey  # of the rows read at the start
  stored: Sequence | None = None  # what the rows are read from (sources.opened)

  @functools.cached_property
  def fingerprint(self) -> dict[str, int | str]:
    """See `data.fingerprint`; computed once."""
    return fingerprint(self.cfg, self.rows, self.stored)


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of a mixture: its rows and its rules."""

  cfg: SourceConfig
  opened: Opened
  teacher: Teacher | None = None

  @property
  def rows(self) -> Sequence[Example]:
    """The rows as examples."""
    return self.opened.rows

  @property
  def seen(self) -> survey.Survey:
    """What was found in the rows that were read at the start."""
    return self.opened.seen


@dataclasses.dataclass(frozen=True)
class Mixture:
  """The sources of a stage, opened, with their weights.

  Attributes:
    sources: in the order of cfg.sources.
    known: P, room for the positives of a row that a step does not draw, and for those
      that its query has in other rows.
    scored: whether its passages carry a teacher's scores.
  """

  cfg: DataConfig
  sources: tuple[Source, ...]

  @property
  def sizes(self) -> tuple[int, ...]:
    """Rows of each source."""
    return tuple(len(s.rows) for s in self.sources)

  @functools.cached_property
  def known(self) -> int:
    """P, room for positives that a step does not draw; see Mixture."""
    if self.cfg.known_positives >= 0:
      return self.cfg.known_positives
    own = [s.seen.most_positives - 1 for s in self.sources]
    others = [min(repeats.most(s.seen.answers) - 1, repeats.ROOM) for s in self.sources]
    return max(0, *own, *others)

  @property
  def scored(self) -> bool:
    """Whether a source brings scores."""
    return any(s.seen.scored or s.teacher for s in self.sources)

  @property
  def teachers(self) -> tuple[Teacher | None, ...]:
    """Of every source, whose vectors its texts bring."""
    return tuple(s.teacher for s in self.sources)

  @property
  def fingerprints(self) -> dict[str, dict[str, int | str]]:
    """By source name, what its rows were read from; the files are read once."""
    return {s.cfg.name: s.opened.fingerprint for s in self.sources}

  def draw(self, ref: sampling.Ref, rng: np.random.Generator) -> Row:
    """Row `ref` (source, row) with all that a step draws for it.

    One that cannot be used is an empty one, where such are skipped.
    """
    group, i = ref
    source = self.sources[group]
    negatives = self.cfg.negatives_of(source.cfg)

    def read(k: int) -> Row:
      example = sources.draw(source.rows, k, negatives, rng)
      return choose(example, group, source.cfg, negatives, rng)

    skipped = bad_rows.Skipped()
    for _, row in bad_rows.good([i], read, source.cfg, skipped):
      return row
    return empty(group, skipped.first)

  def check(self, tokenizer: Tokenizer) -> None:
    """Raises ValueError unless the tokenizer is made for texts of the lengths asked
    for, and every text has room beside its source's prompt."""
    limit = tokenizer.model_max_length
    if limit and self.cfg.longest > limit:
      raise ValueError(
          f'DataConfig asks for texts of {self.cfg.longest} tokens, but the tokenizer '
          f'{tokenizer.name} is made for {limit} (model_max_length); shorten '
          'query_lengths or passage_lengths')
    for source in (s.cfg for s in self.sources):
      for side in ('query', 'passage'):
        room = self.cfg.room(source, side)
        behind = source.response if side == 'query' and source.in_context else ''
        for prompt in (found + behind for template in prompts.templates(source, side)
                       for found in prompts.rendered(template, source)):
          taken = sum(tokenizer.frame) + tokenizer.count(prompt)
          if taken >= room:
            raise ValueError(
                f'source {source.name!r}: {side}_prompt {prompt!r:.60} and special '
                f'tokens take {taken} tokens of the {room} that a {side} has, and '
                f'leave no room for its text; raise {side}_max_length or DataConfig.'
                f'{side}_lengths')

  def check_scores(self, reads: Reads = _BY_SCORES) -> None:
    """Raises ValueError unless sources bring the scores and vectors that a loss reads,
    and none brings scores to a loss that reads none."""
    reads_of.check(self.sources, self.cfg, reads)

  def same_ids(self, tokenizer: Tokenizer) -> dict[int, int]:
    """Of texts to which the data gives one id: their hashes -> the hash of one."""
    one: dict[int, int] = {}

    def root(x: int) -> int:
      while one.get(x, x) != x:
        x = one[x]
      return x

    for source in self.sources:
      cut = self.cfg.room(source.cfg, 'passage')
      prompt = prompts.rendered(source.cfg.passage_prompt, source.cfg)[0]
      for texts in source.seen.same_texts.values():
        given = [prompt] * len(texts), [cut] * len(texts)
        found = tokenizer.encode(texts, given[0], max_length=cut)
        first, *others = text_ids(tokenizer, texts, *given, found).tolist()
        for other in others:
          one[root(other)] = root(first)
    return {x: root(x) for x in one}

  def answers(self, tokenizer: Tokenizer) -> list[dict[int, np.ndarray]]:
    """Of every source: id of a query that comes in several rows -> the ids of its
    positives in all that were read at the start."""
    if not self.known:
      return [{} for _ in self.sources]
    return [repeats.ids(
        s.seen.answers, tokenizer,
        prompts=(prompts.rendered(s.cfg.query_prompt, s.cfg)[0],
                 prompts.rendered(s.cfg.passage_prompt, s.cfg)[0]),
        lengths=(self.cfg.room(s.cfg, 'query'), self.cfg.room(s.cfg, 'passage')))
        for s in self.sources]

  def notes(self, reads: Reads | None = _NOTHING) -> list[str]:
    """Warnings, a sentence each: what rows bring that nothing uses, and the like.

    Args:
      reads: what the loss of the stage reads; None: it is not known.
    """
    found = [f'source {s.cfg.name!r}: {note}' for s in self.sources
             for note in s.seen.notes(s.cfg, self.cfg.negatives_of(s.cfg),
                                      reads)]
    found += [f'source {s.cfg.name!r}: the loss reads neither vectors nor scores, so '
              'its teacher teaches nothing; leave teacher out, or add a loss that does '
              "(LossConfig.plus, 'embed_match')" for s in self.sources
              if s.teacher and reads is not None and not reads.vectors
              and not reads.scores]
    for s in self.sources:
      if (most := repeats.most(s.seen.answers)) > 1 + self.known:
        found.append(
            f'source {s.cfg.name!r}: {len(s.seen.answers)} queries have positives in '
            f'several rows, one of them {most}; {self.known} at a time are kept from '
            'being its negatives, those in the batch first. Set '
            'DataConfig.known_positives for more')
    if self.known > _MANY:
      found.append(f'up to {self.known} known positives of a row are compared with '
                   'every passage of a batch, which takes time')
    found += self._repeated()
    found += [f'source {s.cfg.name!r}: queries end in {s.cfg.response!r} in '
              'training (in_context); a model stores no text behind its queries, so '
              'put it there when you use it' for s in self.sources if s.cfg.in_context]
    if self.cfg.batch_size == 1 and not self.cfg.num_negatives:
      found.append('batch_size is 1 and num_negatives 0: a row has nothing to be told '
                   'apart from')
    return found

  def _repeated(self) -> list[str]:
    """Warnings of sources that a batch takes more rows of than they have."""
    cfg = self.cfg
    shares = sampling.shares(self.sizes, cfg.sources, cfg.size_temperature)
    of = {s.task or s.name: 0.0 for s in cfg.sources}
    for s, share in zip(cfg.sources, shares):
      of[s.task or s.name] += share
    found = []
    for s, size, share in zip(cfg.sources, self.sizes, shares):
      among = of[s.task or s.name] if cfg.homogeneous else sum(shares)
      rows = cfg.batch_size * share / among
      if rows > size:
        found.append(f'source {s.name!r}: a batch takes about {rows:.0f} of its rows, '
                     f'and there are {size}: rows come several times in one batch, '
                     'where they teach nothing new; lower batch_size or weight')
    return found


def open_mixture(cfg: DataConfig, opened: dict | None = None,
                 given: memory.Rows | None = None) -> Mixture:
  """Opens the sources of a mixture and reads cfg.check_rows rows of each.

  Args:
    opened: sources that other stages have opened; those of this one are added.
    given: by name of a source of kind 'memory', its rows.

  Raises:
    BadRow: a checked row cannot be used, or a source has none at all.
    FileNotFoundError: a path names nothing.
    ValueError: there is no source.
  """
  if not cfg.sources:
    raise ValueError('DataConfig.sources is empty; name at least one dataset')
  opened = {} if opened is None else opened
  found = []
  for source in cfg.sources:
    key = (tuple(str(getattr(source, name)) for name in _CONTENT), cfg.check_rows,
           source.name if source.kind == 'memory' else '')
    if key not in opened:
      stored = sources.opened(source, given)
      rows = sources.examples(source, stored)
      opened[key] = Opened(source, rows, survey.survey(
          rows, cfg.check_rows, source), stored)
    found.append(Source(source, opened[key], _teacher(source, opened[key], cfg)))
    if cfg.check_rows:
      opened[key].seen.check(source)
    if cfg.check_rows and opened[key].seen.bare and source.on_bad_row == 'fail':
      prompts.check_instruction(source, opened[key].seen.bare)
  widths = {s.teacher.width: s.cfg.name for s in found if s.teacher}
  if len(widths) > 1:
    raise ValueError(f'the teachers of sources {" and ".join(widths.values())} give '
                     f'vectors of {" and ".join(map(str, widths))} numbers; give all '
                     'sources the same teacher')
  return Mixture(cfg, tuple(found))


def _teacher(source: SourceConfig, opened: Opened, cfg: DataConfig) -> Teacher | None:
  """The teacher of a source, which has vectors of the rows that are looked at."""
  if not source.teacher:
    return None
  found = Teacher(source.teacher, source.name)
  places = sources.spread(len(opened.rows), min(cfg.check_rows, _TAUGHT) or 1)
  for _, example in bad_rows.good(places, opened.rows.__getitem__, source):
    found.check(example)
  return found


def open_stages(stages: Sequence[StageConfig], given: memory.Rows | None = None
                ) -> list[Mixture]:
  """The mixture of every stage; what several share is opened once.

  Args:
    given: by name of a source of kind 'memory', its rows.

  Raises:
    ValueError: rows are given that no source takes; see open_mixture too.
  """
  opened: dict = {}
  named = {s.name for stage in stages for s in stage.data.sources if s.kind == 'memory'}
  if unasked := [name for name in given or () if name not in named]:
    raise ValueError(f"rows are given for {unasked[0]!r}, and no source of kind "
                     f"'memory' has this name; there are {sorted(named) or 'none'}")
  return [open_mixture(stage.data, opened, given) for stage in stages]
