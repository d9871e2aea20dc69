"""Held-out training pairs, scored as retrieval while a model trains."""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any
import warnings

import numpy as np

from jaxembed import config, types
from jaxembed.batch_runner import BatchRunner
from jaxembed.data import beir, prompts, sources, tokenise
from jaxembed.data.records import Example
from jaxembed.evaluation import geometry, metrics, retrieval
from jaxembed.similarity import unit

CUTOFFS = (1, 10)


def scorer(cfg: config.EvalConfig, stages: Sequence[config.StageConfig] = (),
           given: Mapping[str, Any] | None = None
           ) -> Callable[..., dict[str, float]] | None:
  """Scorer of held-out pairs: (params, model, tokenizer, mesh) -> 'eval/...' by name.

  'ci95/...' is half of the 95% interval of a score that is a mean over queries.

  Every query ranks the positives of all held-out rows, behind the prompts that
  training would put in front of them (of several instructions the first). Texts that
  are equal with their prompts are one document, and one that answers a query does so
  behind every prompt. A source without prompts takes the ones that all of `stages`
  train with. None without a `cfg.source`. The rows are read here, once; those of kind
  'memory' are `given` by the source's name.

  Ranks are by what the last of `stages` compares by; the measures of geometry are
  always those of vectors of length 1.
  """
  if cfg.source is None:
    return None
  source = _with_prompts(cfg.source, stages)
  rows = sources.load(source, given=given)
  rows = [rows[i] for i in range(min(len(rows), cfg.limit or len(rows)))]
  prompted = _prompted(rows, source)
  queries = [query for query, _ in prompted]
  corpus = list(dict.fromkeys(p for _, passages in prompted for p in passages))
  places = collections.defaultdict(list)  # of a text: its documents
  for i, (_, text) in enumerate(corpus):
    places[text].append(str(i))
  qrels = {str(i): {d: 1 for _, text in passages for d in places[text]}
           for i, (_, passages) in enumerate(prompted)}
  number = {passage: i for i, passage in enumerate(corpus)}
  first = [number[passages[0]] for _, passages in prompted]
  similarity = stages[-1].loss.similarity if stages else 'cosine'

  def score(params: types.Params, model: config.ModelConfig,
            tokenizer: tokenise.Tokenizer, mesh) -> dict[str, float]:
    run = BatchRunner(params, model, tokenizer, mesh)
    vectors, documents = (_encode(run, x, cfg.batch_size) for x in (queries, corpus))
    found = retrieval.rank(list(qrels), vectors, [str(i) for i in range(len(corpus))],
                           documents, depth=min(max(CUTOFFS), len(corpus)), mesh=mesh,
                           similarity=similarity)
    scores = metrics.per_query(qrels, found, CUTOFFS)
    vectors, documents = unit(vectors), unit(documents)
    answers = documents[first]
    health = {'alignment': geometry.alignment(vectors, answers),
              'uniformity': geometry.uniformity(documents),
              'effective_rank': geometry.effective_rank(documents)}
    kept = ('ndcg@10', 'recall@1', 'recall@10', 'mrr@10')
    means = {name: float(np.mean(scores[name])) for name in kept}
    return {f'eval/{name}': value for name, value in (means | health).items()} | {
        f'ci95/{name}': metrics.half_interval(scores[name]) for name in kept}

  return score


def as_retrieval(rows: Sequence[Example]) -> beir.Retrieval:
  """Pairs as a retrieval task: each query is to find its positives among all of them.

  Positives that are equal are one document. What rows bring beside (instructions, hard
  negatives) is left out, instructions with a warning.
  """
  if bare := sum(bool(row.instruction) for row in rows):
    warnings.warn(f'{bare} of {len(rows)} rows bring an instruction or prompt of their '
                  'own, which is not put in front; give one to all as query_prompt',
                  stacklevel=3)
  texts = dict.fromkeys(p.text for row in rows for p in row.positives)
  number = {text: f'd{i}' for i, text in enumerate(texts)}
  return beir.Retrieval(
      {id_: text for text, id_ in number.items()},
      {f'q{i}': row.query for i, row in enumerate(rows)},
      {f'q{i}': {number[p.text]: 1 for p in row.positives}
       for i, row in enumerate(rows)})


def _with_prompts(source: config.SourceConfig, stages) -> config.SourceConfig:
  found = prompts.trained(stages)
  if source.query_prompt or source.passage_prompt or 'query' not in found:
    return source
  return dataclasses.replace(source, query_prompt=found['query'],
                             passage_prompt=found['document'])


_Prompted = tuple[str, str]  # a prompt and the text behind it


def _prompted(rows: list[Example], source: config.SourceConfig
              ) -> list[tuple[_Prompted, list[_Prompted]]]:
  """The query and the positives of every row behind their prompts."""
  found, bare = [], 0
  for row in rows:
    instruction = prompts.choose_instruction(row.instruction, source.instructions)
    bare += not instruction
    ask = prompts.render(source.query_prompt, instruction)
    answer = prompts.render(source.passage_prompt,
                            row.passage_instruction or instruction)
    found.append(((ask, row.query), [(answer, p.text) for p in row.positives]))
  if bare and prompts.needs_instruction(source.query_prompt + source.passage_prompt):
    warnings.warn(
        f'held-out source {source.name!r}: {bare} of {len(rows)} rows have no '
        "'instruction' for the prompt's {instruction} and are scored without that "
        "prompt; set the source's instructions", stacklevel=3)
  return found


def _encode(run: BatchRunner, prompted: list[_Prompted], batch_size: int
            ) -> np.ndarray:
  """Vectors of texts behind their prompts, in order: [n,E] float32."""
  prompt, text = map(list, zip(*prompted))
  vectors = run.vectors(text, prompt, batch_size, run.cfg.embedding_dim, False)
  if run.report.truncated:
    warnings.warn(f'{run.report.truncated} of {len(text)} held-out texts are longer '
                  f'than {run.cfg.max_length} tokens and are cut there', stacklevel=3)
  return vectors
