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
  metrics,
  retrieval,
  sts,
)

NAMES = ('pairs', 'retrieval', 'sts', 'classification', 'clustering')
_RANKED = ('pairs', 'retrieval')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Settings of an evaluation task.

  Attributes:
    split: which qrels or rows.
    cutoffs, drop_same_id: of rankings (retrieval.evaluate).
    query_prompt, query_prompt_name, document_prompt, document_prompt_name: in front of
      the two sides of rankings; None: the model's own choice.
    prompt, prompt_name: the same for tasks without sides.
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

  def check(self, task: str) -> None:
    """Raises ValueError for what `task` could not heed, or what means nothing."""
    sides = ('query_prompt', 'query_prompt_name', 'document_prompt',
             'document_prompt_name')
    unused = ('prompt', 'prompt_name') if task in _RANKED else sides
    if given := [name for name in unused if getattr(self, name) is not None]:
      instead = 'prompt' if unused is sides else 'query_prompt and document_prompt'
      raise ValueError(f'{given[0]} has no meaning for the task {task}; give {instead}')
    metrics.check_cutoffs(self.cutoffs)
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
      folder of SPLIT.jsonl and, for classification, train.jsonl.

  Raises:
    ValueError: options that mean nothing here, or data that cannot be scored.
  """
  if task not in NAMES:
    raise ValueError(f'task {task!r} is unknown; choose one of {", ".join(NAMES)}')
  options.check(task)
  shared: dict[str, Any] = {
      'batch_size': options.batch_size, 'truncate_dim': options.truncate_dim}
  if task in _RANKED:
    found = _pairs(data) if task == 'pairs' else (
        data if isinstance(data, beir.Retrieval) else beir.load(data, options.split))
    return retrieval.evaluate(
        embedder, found.corpus, found.queries, found.qrels, cutoffs=options.cutoffs,
        drop_same_id=options.drop_same_id, query_prompt=options.query_prompt,
        query_prompt_name=options.query_prompt_name,
        document_prompt=options.document_prompt,
        document_prompt_name=options.document_prompt_name, **shared)
  shared |= {'prompt': options.prompt, 'prompt_name': options.prompt_name}
  if task == 'sts':
    pairs = data if isinstance(data, beir.ScoredPairs) else beir.load_scored(data)
    return sts.evaluate(embedder, pairs.first, pairs.second, pairs.scores, **shared)
  test = beir.load_labelled(data, options.split)
  if task == 'clustering':
    return clustering.evaluate(embedder, test.texts, test.labels, **shared)
  train = beir.load_labelled(data, 'train')
  return classification.evaluate(embedder, train.texts, train.labels, test.texts,
                                 test.labels, **shared)


def _pairs(data: Any) -> beir.Retrieval:
  found = given.given(data, 'data')
  if len(found.sources) > 1:
    raise ValueError(f'data names {len(found.sources)} sets; score one at a time')
  rows = sources.load(found.sources[0], given=found.rows)
  return held_out.as_retrieval([rows[i] for i in range(len(rows))])
