"""Training data configuration: sources and their mixture."""

from dataclasses import dataclass, field
import math
import re
from typing import Optional

from jaxembed.config.check import at_least, one_of, require, typed
from jaxembed.config.loss import TEMPERATURES

# Names that kinds and rows had before.
_FORMER = {'python_source': 'installed_code', 'mined': 'bm25'}
_HALF_CHARACTER = re.compile('[\ud800-\udfff]')


@dataclass(kw_only=True)
class SourceConfig:
  """One dataset of a mixture and the rules that hold for its rows.

  path: a file, a glob or a folder (jsonl, tsv; .gz too), the dataset's name for
    tfds ('name/config:version'), none for installed_code, nor for memory: rows that
    the program holds and gives to the call, by the source's name.
  rows: how rows become examples.
    pairs: a row names its query, positives and any negatives.
    bm25: the same, and more negatives are found by BM25 among the other rows.
    same_label: a row is a text and its label; positive and negatives are drawn
      anew each time, texts of the same and of other labels.
    label_text: likewise, drawn from the labels themselves.
    scored: a row is two texts and a score of how alike they are, for losses by the
      scores of pairs (cosent, angle, pair_mse). To other losses they are no positives.
  header: of tsv, whether the first line names the columns; None: seen from the line,
    and refused where it may be a row. Without names a line's cells are a query, its
    positive and any negatives, or what `columns` calls them, one name for each cell.
  columns: names of the query's, the positive's and any negatives' columns, for
    rows that are named otherwise than sentence-transformers, FlagEmbedding and
    Tevatron name theirs; of the text and its label for rows of labels; of the two texts
    and their score for scored rows.
  query_prompt, passage_prompt: put in front of the text. '{instruction}' in one
    is replaced by the row's own instruction or, without one, by one of
    `instructions`, drawn anew each time.
  """

  name: str  # in metrics and messages
  kind: str = 'jsonl'  # jsonl | tsv | installed_code | tfds | memory
  rows: str = 'pairs'  # pairs | bm25 | same_label | label_text | scored
  path: str = ''
  split: str = 'train'  # of installed_code and tfds
  data_dir: str = ''  # where tfds keeps its data; '': its own default
  header: Optional[bool] = None
  columns: tuple[str, ...] = ()
  limit: int = 0  # the first so many rows; 0: all
  weight: float = 1.0  # share of the mixture, relative to the other sources

  in_batch: bool = True  # false: a row's own negatives alone count
  symmetric: bool = False  # rows also serve the other way round
  min_score: Optional[float] = None  # of scored pairs: lower ones are no positives
  # Of scored bm25 pairs: above it a text is no negative either; None: min_score.
  max_negative_score: Optional[float] = None
  num_negatives: int = -1  # at most so many per row; -1: DataConfig's
  query_prompt: str = ''
  passage_prompt: str = ''
  instructions: tuple[str, ...] = ()  # to draw from, for {instruction}
  query_max_length: int = 0  # tokens; 0: DataConfig's longest
  passage_max_length: int = 0  # tokens; 0: DataConfig's longest
  temperature: float = 0.0  # of the loss of its rows; 0: the stage's

  def __post_init__(self):
    try:
      typed(self)
      self.kind = _FORMER.get(self.kind, self.kind)
      self.rows = _FORMER.get(self.rows, self.rows)
      self._check_fields()
      self._check_rules()
      self._check_file()
    except ValueError as error:
      raise ValueError(f'source {self.name!r}: {error}') from None

  def _check_fields(self):
    require(self, 'name', bool(self.name), 'a name; metrics and messages need one')
    one_of(self, 'kind', ('jsonl', 'tsv', 'installed_code', 'tfds', 'memory'))
    one_of(self, 'rows', ('pairs', 'bm25', 'same_label', 'label_text', 'scored'))
    at_least(self, limit=0, num_negatives=-1, query_max_length=0, passage_max_length=0)
    low, high = TEMPERATURES
    require(self, 'temperature', self.temperature == 0
            or low <= self.temperature <= high,
            f"0 for the stage's, or {low:g} to {high:g}")
    require(self, 'weight', 0 < self.weight < math.inf,
            'one above 0 (leave the source out to switch it off)')
    for name in ('min_score', 'max_negative_score'):
      value = getattr(self, name)
      require(self, name, value is None or math.isfinite(value), 'a finite number')
    require(self, 'instructions', all(i.strip() for i in self.instructions),
            'texts that are not empty, or none')
    for name in ('name', 'query_prompt', 'passage_prompt', 'instructions'):
      value = getattr(self, name)
      texts = (value,) if isinstance(value, str) else value
      require(self, name, not any(map(_HALF_CHARACTER.search, texts)),
              'text without halves of characters (lone surrogates)')
    uses = '{instruction}' in self.query_prompt + self.passage_prompt
    if self.instructions and not uses:
      raise ValueError("instructions are given, but no prompt has '{instruction}' to "
                       "take them; set query_prompt, for example to 'Instruct: "
                       "{instruction}\\nQuery: '")

  def _check_file(self):
    """What names the rows: the fields that this kind reads, and no others."""
    here = f'kind {self.kind!r}'
    code = self.kind == 'installed_code'
    pathless = code or self.kind == 'memory'
    if not pathless and not self.path:
      raise ValueError(f'{here} needs a path')
    if pathless and self.path:
      raise ValueError(f'{here} reads no path, and path is {self.path!r}; leave it out')
    if self.kind in ('jsonl', 'tsv', 'memory') and self.split != 'train':
      raise ValueError(f'split is {self.split!r}, but {here} has no splits; '
                       'name other rows')
    if code:
      one_of(self, 'split', ('train', 'test'))
    require(self, 'split', bool(self.split), "a split, such as 'train'")
    for name, kind in (('data_dir', 'tfds'), ('header', 'tsv')):
      if getattr(self, name) not in ('', None) and self.kind != kind:
        raise ValueError(f'{name} is {getattr(self, name)!r}, which {here} does not '
                         f'read; it is for kind {kind!r}')
    twice = len(set(self.columns)) < len(self.columns)
    if self.columns and (len(self.columns) < 2 or twice or '' in self.columns or code):
      raise ValueError(f'columns is {tuple(self.columns)}; name the query, the '
                       'positive and any negatives, in this order and each once'
                       + (f', of another kind than {self.kind!r}' if code else ''))

  def _check_rules(self):
    if self.rows != 'pairs' and self.kind == 'installed_code':
      raise ValueError("kind 'installed_code' gives rows='pairs' only")
    if self.rows == 'same_label' and self.in_batch:
      raise ValueError("rows='same_label' needs in_batch=False, as other rows "
                       'of a batch may have the same label')
    if self.rows == 'scored' and len(self.columns) not in (0, 3):
      raise ValueError(f'columns is {tuple(self.columns)}; name the two texts and '
                       'their score, in this order')
    if self.rows in ('same_label', 'label_text', 'scored'):
      if self.symmetric or self.min_score is not None:
        raise ValueError(f'rows={self.rows!r} knows neither symmetric nor '
                         'min_score; leave them out')
      if self.columns and len(self.columns) != 2 and self.rows != 'scored':
        raise ValueError(f'columns is {tuple(self.columns)}; name the text and '
                         'its label, in this order')
    if self.max_negative_score is not None and (
        self.rows != 'bm25' or self.min_score is None):
      raise ValueError("max_negative_score is for rows='bm25' with min_score")
    if self.min_score is not None and self.kind == 'installed_code':
      raise ValueError("kind 'installed_code' has no scores; leave min_score out")


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
  homogeneous: bool = False  # each batch from one source; false: blended
  known_positives: int = -1
  check_rows: int = 100_000  # per source, read and checked before training starts
  prefetch: int = 4  # batches a thread prepares ahead; 0: on demand

  def __post_init__(self):
    typed(self)
    at_least(self, batch_size=1, num_negatives=0, check_rows=0, prefetch=0, pack=0,
             known_positives=-1)
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

  def negatives_of(self, source: SourceConfig) -> int:
    """Negatives per row that a source may fill."""
    return self.num_negatives if source.num_negatives < 0 else source.num_negatives
