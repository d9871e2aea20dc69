"""Configuration of one dataset: where its rows are and the rules for them."""

from dataclasses import dataclass
import math
import os
import re
from typing import Optional

from jaxembed.config.check import at_least, one_of, require, typed
from jaxembed.config.loss import TEMPERATURES

# Names that kinds and rows had before.
_FORMER = {'python_source': 'installed_code'}
_HALF_CHARACTER = re.compile('[\ud800-\udfff]')
# Kinds that are files, with what their names end in, and may then be packed.
FILES = {
    'jsonl': ('.jsonl', '.ndjson'), 'tsv': ('.tsv',), 'csv': ('.csv',),
    'parquet': ('.parquet',), 'arrow': ('.arrow', '.feather')}
_PACKED = ('.gz', '.zst')
_PATHLESS = ('installed_code', 'memory')
_KINDS = (*FILES, 'datasets', 'tfds', 'beir', 'mined', 'memory', 'installed_code')
_WITH_SPLITS = ('datasets', 'tfds', 'beir', 'installed_code')
# Fields that only some kinds read.
_READ_BY = {
    'paths': tuple(FILES), 'cache_dir': (*FILES, 'beir'), 'data_dir': ('tfds',),
    'subset': ('datasets',), 'header': ('tsv', 'csv'), 'quoted': ('tsv', 'csv'),
    'delimiter': ('tsv', 'csv')}


@dataclass(kw_only=True)
class SourceConfig:
  """One dataset of a mixture and the rules that hold for its rows.

  kind: what holds the rows; seen from the end of `path` where it says so.
    jsonl, tsv, csv: text files, plain or packed (.gz, .zst).
    parquet, arrow: tables.
    datasets: a folder or hub id of Hugging Face's datasets (an extra).
    tfds: a dataset that TensorFlow Datasets has prepared as array_record.
    beir: a folder with corpus, queries and qrels/SPLIT.
    mined: the folder of a mining run, with rows that launch.mine has given negatives.
    memory: rows that the program holds and gives to the call, by the source's name.
    installed_code: docstrings and functions of the Python that is installed.
  path: a file, a glob or a folder; for tfds 'name/config:version', for datasets a
    folder or a hub id; none for memory and installed_code.
  paths: more files, globs and folders, read after `path`.
  rows: how rows become examples.
    pairs: a row names its query, positives and any negatives.
    bm25: the same, and more negatives are found by BM25 among the other rows.
    mined: pairs of kind 'mined'. (Of rows in files it is a former name of bm25.)
    same_label: a row is a text and its label; positive and negatives are drawn
      anew each time, texts of the same and of other labels.
    label_text: likewise, drawn from the labels themselves.
    scored: a row is two texts and a score of how alike they are, for losses by the
      scores of pairs (cosent, angle, pair_mse). To other losses they are no positives.
  header: of tsv and csv, whether the first line names the columns; None: seen from the
    line, and refused where it may be a row. Without names a line's cells are a query,
    its positive and any negatives, or what `columns` calls them, one name for each
    cell.
  quoted: of tsv and csv, whether cells stand in quotation marks where they need them,
    and may then hold delimiters and line ends; None: csv does, tsv does not.
  columns: names of the query's, the positive's and any negatives' columns, for
    rows that are named otherwise than sentence-transformers, FlagEmbedding and
    Tevatron name theirs; of the text and its label for rows of labels; of the two texts
    and their score for scored rows.
  score_column: name of the column with the score of a pair; '': none has it, whatever
    they are called, and a teacher's scores (pos_scores, neg_scores) are left alone too;
    None: score, scores, label, labels or similarity_score. A score that the loss does
    not read is refused, but for those of kind 'mined', which its rules have used.
  on_bad_row: fail: a row that cannot be used ends the run, with what was trained saved;
    skip: its place in the batch stays empty, which is counted and told.
  cap: so many rows at most count where sources are weighed by size, and in an epoch;
    0: all.
  task: sources of one task share batches where each batch, or part of one, is of one
    source; '': the source is a task of its own.
  negative_choice: of a row with more negatives than there is room for: random ones,
    drawn anew each time, or the first.
  teacher: folders that jaxembed teach wrote, whose vectors of the texts losses read; of
    several, the mean of their cosines counts. Rows without scores of their own take
    the teacher's cosines for scores.
  query_prompt, passage_prompt: put in front of the text. '{instruction}' in one
    is replaced by the row's own instruction or, without one, by one of
    `instructions`, drawn anew each time. Of passages it is the row's own for passages,
    if it has one.
  query_prompts, passage_prompts: more templates; one of them, or the one above, is
    drawn anew each time. What a trained model stores is the one above.
  in_context: at most so many examples in front of a query, other rows of the batch with
    their positives, drawn anew each time (data/in_context.py).
  """

  name: str  # in metrics and messages
  kind: str = ''
  rows: str = 'pairs'  # pairs | bm25 | same_label | label_text | scored
  path: str = ''
  paths: tuple[str, ...] = ()
  split: str = 'train'  # of datasets, tfds, beir and installed_code
  subset: str = ''  # of datasets, the configuration's name
  data_dir: str = ''  # where tfds keeps its data; '': its own default
  # Where packed files, Parquet and indices of large files are kept, unpacked; '':
  # ~/.cache/jaxembed/data.
  cache_dir: str = ''
  header: Optional[bool] = None
  quoted: Optional[bool] = None
  delimiter: str = ''  # of tsv and csv; '': a tab, a comma
  columns: tuple[str, ...] = ()
  score_column: Optional[str] = None
  on_bad_row: str = 'fail'  # fail | skip
  limit: int = 0  # the first so many rows; 0: all
  weight: float = 1.0  # share of the mixture, relative to the other sources
  cap: int = 0
  task: str = ''

  in_batch: bool = True  # false: a row's own negatives alone count
  symmetric: bool = False  # rows also serve the other way round
  min_score: Optional[float] = None  # of scored pairs: lower ones are no positives
  # Of scored bm25 pairs: above it a text is no negative either; None: min_score.
  max_negative_score: Optional[float] = None
  num_negatives: int = -1  # at most so many per row; -1: DataConfig's
  negative_choice: str = 'random'  # random | first
  teacher: tuple[str, ...] = ()
  query_prompt: str = ''
  passage_prompt: str = ''
  query_prompts: tuple[str, ...] = ()
  passage_prompts: tuple[str, ...] = ()
  in_context: int = 0
  # Behind a query, and between an example's query and positive, with in_context.
  response: str = '\n<response>'
  instructions: tuple[str, ...] = ()  # to draw from, for {instruction}
  query_max_length: int = 0  # tokens; 0: DataConfig's longest
  passage_max_length: int = 0  # tokens; 0: DataConfig's longest
  temperature: float = 0.0  # of the loss of its rows; 0: the stage's

  def __post_init__(self):
    try:
      typed(self)
      self.kind = _FORMER.get(self.kind, self.kind) or kind_of(self.path) or 'jsonl'
      if self.rows == 'mined':
        self._name_mined()
      self._check_fields()
      self._check_rules()
      self._check_file()
    except ValueError as error:
      raise ValueError(f'source {self.name!r}: {error}') from None

  def _name_mined(self):
    """rows='mined' by the names of today."""
    if self.kind == 'mined' or (self.kind == 'jsonl' and not _holds_rows(self.path)):
      self.kind, self.rows = 'mined', 'pairs'
    else:
      self.rows = 'bm25'

  def _check_fields(self):
    require(self, 'name', bool(self.name), 'a name; metrics and messages need one')
    one_of(self, 'kind', _KINDS)
    one_of(self, 'rows', ('pairs', 'bm25', 'same_label', 'label_text', 'scored'))
    one_of(self, 'on_bad_row', ('fail', 'skip'))
    one_of(self, 'negative_choice', ('random', 'first'))
    at_least(self, limit=0, cap=0, num_negatives=-1, query_max_length=0,
             passage_max_length=0, in_context=0)
    require(self, 'response', bool(self.response.strip()), 'a text, such as a mark')
    low, high = TEMPERATURES
    require(self, 'temperature', self.temperature == 0
            or low <= self.temperature <= high,
            f"0 for the stage's, or {low:g} to {high:g}")
    require(self, 'weight', 0 < self.weight < math.inf,
            'one above 0 (leave the source out to switch it off)')
    require(self, 'delimiter', self.delimiter == '' or (
        len(self.delimiter) == 1 and self.delimiter.isascii()
        and self.delimiter not in '"\r\n'), "one character of ASCII, such as ';'")
    for name in ('min_score', 'max_negative_score'):
      value = getattr(self, name)
      require(self, name, value is None or math.isfinite(value), 'a finite number')
    require(self, 'instructions', all(i.strip() for i in self.instructions),
            'texts that are not empty, or none')
    for name in ('name', 'query_prompt', 'passage_prompt', 'instructions',
                 'query_prompts', 'passage_prompts', 'response'):
      value = getattr(self, name)
      texts = (value,) if isinstance(value, str) else value
      require(self, name, not any(map(_HALF_CHARACTER.search, texts)),
              'text without halves of characters (lone surrogates)')
    uses = '{instruction}' in ''.join((
        self.query_prompt, self.passage_prompt, *self.query_prompts,
        *self.passage_prompts))
    if self.instructions and not uses:
      raise ValueError("instructions are given, but no prompt has '{instruction}' to "
                       "take them; set query_prompt, for example to 'Instruct: "
                       "{instruction}\\nQuery: '")

  def _check_file(self):
    """What names the rows: the fields that this kind reads, and no others."""
    here = f'kind {self.kind!r}'
    if self.kind in _PATHLESS and self.path:
      raise ValueError(f'{here} reads no path, and path is {self.path!r}; leave it out')
    if self.kind not in _PATHLESS and not self.path:
      raise ValueError(f'{here} needs a path')
    require(self, 'paths', all(self.paths), 'files, globs or folders')
    if self.kind not in _WITH_SPLITS and self.split != 'train':
      raise ValueError(f'split is {self.split!r}, but {here} has no splits; '
                       'name other rows')
    if self.kind == 'installed_code':
      one_of(self, 'split', ('train', 'test'))
    require(self, 'split', bool(self.split), "a split, such as 'train'")
    for name, kinds in _READ_BY.items():
      if getattr(self, name) not in ('', None, (), []) and self.kind not in kinds:
        raise ValueError(f'{name} is {getattr(self, name)!r}, which {here} does not '
                         f'read; it is for {" and ".join(map(repr, kinds))}')
    twice = len(set(self.columns)) < len(self.columns)
    fixed = self.kind in ('installed_code', 'beir', 'mined')
    if self.columns and (len(self.columns) < 2 or twice or '' in self.columns or fixed):
      raise ValueError(f'columns is {tuple(self.columns)}; name the query, the '
                       'positive and any negatives, in this order and each once'
                       + (f', of another kind than {self.kind!r}' if fixed else ''))

  def _check_rules(self):
    if self.rows != 'pairs' and self.kind == 'installed_code':
      raise ValueError("kind 'installed_code' gives rows='pairs' only")
    if self.rows not in ('pairs', 'bm25') and self.kind in ('beir', 'mined'):
      raise ValueError(f'kind {self.kind!r} gives no rows={self.rows!r}; leave rows '
                       'out')
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
    if self.teacher and self.rows in ('same_label', 'label_text'):
      raise ValueError(f'rows={self.rows!r} draws texts anew, for which a teacher has '
                       'no vectors; leave teacher out')
    require(self, 'teacher', '' not in self.teacher, 'folders')
    if self.max_negative_score is not None and (
        self.rows != 'bm25' or self.min_score is None):
      raise ValueError("max_negative_score is for rows='bm25' with min_score")
    if self.min_score is not None and self.kind == 'installed_code':
      raise ValueError("kind 'installed_code' has no scores; leave min_score out")


def suffixes(kind: str) -> tuple[str, ...]:
  """What the names of files of a kind end in."""
  return tuple(end + packed for end in FILES[kind] for packed in ('', *_PACKED))


def _holds_rows(path: str) -> bool:
  """Whether a path means files of rows, or a folder of them, and no mining run."""
  if '*' in path or path.endswith(suffixes('jsonl')) or os.path.isfile(path):
    return True
  return os.path.isdir(path) and not os.path.exists(
      os.path.join(path, 'collection.json')) and any(
          name.endswith(suffixes('jsonl')) for name in os.listdir(path))


def kind_of(name: str) -> str:
  """The kind of files that the end of a name or path says; '' for none."""
  return next((kind for kind in FILES if name.endswith(suffixes(kind))), '')
