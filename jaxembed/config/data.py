"""Training data configuration: a mixture of sources, cut into batches."""

from dataclasses import dataclass, field

from jaxembed.config.check import at_least, require, typed
from jaxembed.config.source import SourceConfig


@dataclass(kw_only=True)
class DataConfig:
  """A mixture of sources, cut into batches of one shape.

  query_lengths, passage_lengths: the lengths in tokens that batches are padded to.
    The shortest that holds a batch's longest text is taken; longer texts are cut.
    With several of them and several processes, each process tokenises the whole
    batch to know the length.
  pack: the length of rows that several texts share, queries and passages alike, so
    that little is padding; 0: every text has its own row. At least the longest of the
    lengths, which then only say where a text is cut. A batch has as many rows as its
    texts need, in steps of a thirty-second: a few shapes to compile. Every process
    tokenises the whole batch to know them.
  homogeneous: each batch from the sources of one task (SourceConfig.task), or from one
    source; False: batches are blended.
  sub_batch: so many rows at a time come from the sources of one task; 0: one.
  size_temperature: T, where a source's share is weight x rows^(1/T): 1 in proportion to
    size, more nearer to equal shares; 0: weights alone.
  known_positives: room for the positives of a row that a step does not draw, and for
    those that its query has in other rows of its source, so that none of them serves as
    its negative. -1: as many as the checked rows have, of other rows' at most 8 at a
    time; then a later row with more of its own is refused. Other rows' are known of the
    checked rows; those that stand in a batch come first.
  """

  sources: list[SourceConfig] = field(default_factory=list)  # the mixture
  batch_size: int = 64  # queries per step, over all devices
  num_negatives: int = 0  # room for hard negatives per query
  query_lengths: tuple[int, ...] = (32,)
  passage_lengths: tuple[int, ...] = (128,)
  pack: int = 0
  homogeneous: bool = False
  sub_batch: int = 0
  size_temperature: float = 0.0
  known_positives: int = -1
  check_rows: int = 100_000  # per source, read and checked before training starts
  prefetch: int = 4  # batches a thread prepares ahead; 0: on demand

  def __post_init__(self):
    typed(self)
    at_least(self, batch_size=1, num_negatives=0, check_rows=0, prefetch=0, pack=0,
             known_positives=-1, sub_batch=0)
    require(self, 'size_temperature', self.size_temperature == 0
            or 0.1 <= self.size_temperature <= 100,
            '0 for weights alone, or 0.1 to 100')
    if self.sub_batch:
      require(self, 'sub_batch', not self.homogeneous,
              '0: batches that are homogeneous are of one task as a whole')
      require(self, 'sub_batch', self.batch_size % self.sub_batch == 0,
              f'a number that divides batch_size {self.batch_size}')
    for name in ('query_lengths', 'passage_lengths'):
      lengths = tuple(getattr(self, name))
      if not lengths or min(lengths) < 1 or sorted(set(lengths)) != list(lengths):
        raise ValueError(f'DataConfig.{name} is {lengths}; give lengths in tokens, '
                         'each longer than the one before')
    if self.pack and self.pack < self.longest:
      raise ValueError(
          f'DataConfig.pack is {self.pack}, but a text may have {self.longest} tokens; '
          f'give {self.longest} or more, or 0 for a row per text')
    names = [s.name for s in self.sources]
    if twice := sorted({n for n in names if names.count(n) > 1}):
      raise ValueError(f'DataConfig.sources has the name {twice[0]!r} twice; metrics '
                       'are kept by name, give each its own')
    for s in self.sources:
      if s.num_negatives > self.num_negatives:
        raise ValueError(
            f'source {s.name!r} wants {s.num_negatives} negatives per row, but '
            f'DataConfig.num_negatives leaves room for {self.num_negatives}; raise it')
      if not s.in_batch and not self.negatives_of(s) and s.rows != 'scored':
        raise ValueError(
            f'source {s.name!r} has in_batch off and no negatives of its own, so its '
            'rows would teach nothing; set num_negatives or in_batch')
      for side in ('query', 'passage'):
        cut, room = getattr(s, f'{side}_max_length'), getattr(self, f'{side}_lengths')
        if cut > room[-1]:
          raise ValueError(
              f'source {s.name!r}: {side}_max_length {cut} exceeds the longest of '
              f'DataConfig.{side}_lengths {tuple(room)}; add a length')

  @property
  def longest(self) -> int:
    """Tokens of the longest text."""
    return max(self.query_lengths[-1], self.passage_lengths[-1])

  @property
  def row(self) -> int:
    """Tokens of the longest row."""
    return self.pack or self.longest

  def room(self, source: SourceConfig, side: str) -> int:
    """Tokens of a source's longest text on a side ('query', 'passage')."""
    return getattr(source, f'{side}_max_length') or getattr(self, f'{side}_lengths')[-1]

  def negatives_of(self, source: SourceConfig) -> int:
    """Negatives per row that a source may fill."""
    return self.num_negatives if source.num_negatives < 0 else source.num_negatives
