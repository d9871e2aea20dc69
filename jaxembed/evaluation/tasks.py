"""Evaluation tasks by name: files in, figures out."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from jaxembed.data import beir, given, sources
from jaxembed.embedder import Embedder
from jaxembed.evaluation import (
  classification,
  clustering,
  held_out,
  long_texts,
  metrics,
  retrieval,
  sts,
)
from jaxembed.files import place

NAMES = ('pairs', 'retrieval', 'sts', 'classification', 'clustering', 'longembed',
         *long_texts.TASKS)
_RANKED = ('pairs', 'retrieval', 'longembed')
# Prompts of the two sides of rankings, and of tasks without sides.
_SIDES = ('query_prompt', 'query_prompt_name', 'document_prompt',
          'document_prompt_name')
_ALONE = ('prompt', 'prompt_name')
# What the tasks of long_texts.TASKS alone read.
_OF_PROBES = ('lengths', 'documents', 'queries', 'depths', 'seed')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Settings of an evaluation task.

  Attributes:
    split: which qrels or rows.
    cutoffs, drop_same_id: of rankings (retrieval.evaluate).
    query_prompt, query_prompt_name, document_prompt, document_prompt_name: in front of
      the two sides of rankings; None: the model's own choice.
    prompt, prompt_name: the same for tasks without sides.
    lengths, documents, queries, depths, seed: of passkey and needle
      (long_texts.evaluate); None: LongEmbed's.
  """

  split: str = 'test'
  cutoffs: Sequence[int] = metrics.CUTOFFS
  batch_size: int = 32
  truncate_dim: int | None = None
  drop_same_id: bool = True
  query_prompt: str | None = None
  query_prompt_name: str | None = None
  document_prompt: str | None = None
  document_prompt_name: str | None = None
  prompt: str | None = None
  prompt_name: str | None = None
  lengths: Sequence[int] | None = None
  documents: int | None = None
  queries: int | None = None
  depths: int | None = None
  seed: int | None = None

  def check(self, task: str) -> None:
    """Raises ValueError for what `task` could not heed, or what means nothing."""
    if task in long_texts.TASKS:
      unused, instead = ('truncate_dim', *_ALONE, *_SIDES), 'a model that has it'
    elif task in _RANKED:
      unused, instead = (*_ALONE, *_OF_PROBES), 'query_prompt and document_prompt'
    else:
      unused, instead = (*_SIDES, *_OF_PROBES), 'prompt'
    for name in unused:
      if getattr(self, name) is not None:
        remedy = (f'it is of {" and ".join(long_texts.TASKS)}' if name in _OF_PROBES
                  else f'give {instead}')
        raise ValueError(f'{name} has no meaning for the task {task}; {remedy}')
    metrics.check_cutoffs(self.cutoffs)
    for length in self.lengths or ():
      if length < 1:
        raise ValueError(f'lengths has {length}; give tokens, 1 or more')
    for name in ('batch_size', 'truncate_dim'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'{name} is {value}; give 1 or more')


def run(task: str, embedder: Embedder, data: Any, options: Options = Options()
        ) -> dict[str, float]:
  """The figures of a task, by name.

  Args:
    task: one of NAMES.
    data: rows of a query and its positive, in memory, as a path or as a SourceConfig
      (pairs: every query ranks the positives of all rows); a folder in BEIR's form or a
      beir.Retrieval (retrieval); a TSV of scored pairs or beir.ScoredPairs (sts); or a
      folder of SPLIT.jsonl and, for classification, train.jsonl. Of passkey and
      needle a text file of filler, or the text; of longembed a folder of folders in
      BEIR's form (long_texts.REAL).

  Raises:
    ValueError: options that mean nothing here, or data that cannot be scored.
  """
  if task not in NAMES:
    raise ValueError(f'task {task!r} is unknown; choose one of {", ".join(NAMES)}')
  options.check(task)
  shared: dict[str, Any] = {
      'batch_size': options.batch_size, 'truncate_dim': options.truncate_dim}
  if task in long_texts.TASKS:
    return probed(task, embedder, data, options).scores
  prompts = {name: getattr(options, name) for name in _SIDES}
  if task == 'longembed':
    return long_texts.evaluate_real(
        embedder, data, split=options.split, drop_same_id=options.drop_same_id,
        **prompts, **shared)
  if task in _RANKED:
    found = _pairs(data) if task == 'pairs' else (
        data if isinstance(data, beir.Retrieval) else beir.load(data, options.split))
    return retrieval.evaluate(
        embedder, found.corpus, found.queries, found.qrels, cutoffs=options.cutoffs,
        drop_same_id=options.drop_same_id, **prompts, **shared)
  shared |= {name: getattr(options, name) for name in _ALONE}
  if task == 'sts':
    pairs = data if isinstance(data, beir.ScoredPairs) else beir.load_scored(data)
    return sts.evaluate(embedder, pairs.first, pairs.second, pairs.scores, **shared)
  test = beir.load_labelled(data, options.split)
  if task == 'clustering':
    return clustering.evaluate(embedder, test.texts, test.labels, **shared)
  train = beir.load_labelled(data, 'train')
  return classification.evaluate(embedder, train.texts, train.labels, test.texts,
                                 test.labels, **shared)


def probed(task: str, embedder: Embedder, data: Any, options: Options
           ) -> long_texts.Grid:
  """passkey or needle by length and depth; data: a file of filler, or the text itself.

  Raises:
    FileNotFoundError: the name of a file that is not there.
    ValueError: as `run`.
  """
  options.check(task)
  text = data if isinstance(data, str) and any(map(str.isspace, data)) else (
      place.fetched(data).read_text('utf-8'))
  given_ = {name: value for name in _OF_PROBES
            if (value := getattr(options, name)) is not None}
  return long_texts.evaluate(embedder, task, text, batch_size=options.batch_size,
                             **given_)


def _pairs(data: Any) -> beir.Retrieval:
  found = given.given(data, 'data')
  if len(found.sources) > 1:
    raise ValueError(f'data names {len(found.sources)} sets; score one at a time')
  rows = sources.load(found.sources[0], given=found.rows)
  return held_out.as_retrieval([rows[i] for i in range(len(rows))])
