"""Held-out tasks of the experiment on negatives, and scores of a model in them."""

from collections.abc import Sequence
import dataclasses
import pathlib
import statistics

import numpy as np

from jaxembed import config, data
from jaxembed.data import beir
from jaxembed.embedder import Embedder
from jaxembed.evaluation import metrics, retrieval

_TRAINED, _ASKED, _AMONG = 3000, 1000, 3000  # rows, held-out queries, documents
_OTHERS = 700  # documents of SciFact that nobody asks for


@dataclasses.dataclass(frozen=True)
class Split:
  """Training pairs of every set, and the retrieval tasks that are held out."""

  train: dict[str, list[tuple[str, str]]]
  tasks: dict[str, beir.Retrieval]


def split(cfg: config.Config, scifact: pathlib.Path, small: bool) -> Split:
  """The same split every time. Of SQuAD sentences are held out, with questions of
  theirs; SciFact's test claims ask for abstracts."""
  rng, train, tasks = np.random.default_rng(0), {}, {}
  for source in cfg.stages[0].data.sources:
    rows = data.load(source)
    pairs = [(rows[i].query, rows[i].positives[0].text) for i in range(len(rows))]
    if source.name.startswith('squad'):
      pairs = [pairs[i] for i in rng.permutation(len(pairs))]
      tasks['SQuAD'], pairs = _held_out(pairs, small)
    train[source.name] = pairs[:40 if small else _TRAINED]
  tasks['SciFact'] = _scifact(scifact, rng, small)
  return Split(train, tasks)


def _held_out(pairs: Sequence[tuple[str, str]], small: bool
              ) -> tuple[beir.Retrieval, list[tuple[str, str]]]:
  """(A task of questions whose sentences no training row has, the other pairs)."""
  asked, among = (10, 40) if small else (_ASKED, _AMONG)
  sentences = list(dict.fromkeys(p for _, p in pairs))
  own = set(sentences[:asked])
  ids = {p: str(i) for i, p in enumerate(sentences[:among])}
  queries = {}
  for q, p in pairs:
    if p in own and len(queries) < asked:
      queries[f'q{len(queries)}'] = q, p
  return beir.Retrieval(
      {i: p for p, i in ids.items()}, {k: q for k, (q, _) in queries.items()},
      {k: {ids[p]: 1} for k, (_, p) in queries.items()}), [
          pair for pair in pairs if pair[1] not in own]


def _scifact(folder: pathlib.Path, rng: np.random.Generator, small: bool
             ) -> beir.Retrieval:
  found = beir.load(folder)
  qrels = dict(list(found.qrels.items())[:10 if small else None])
  judged = {d for gains in qrels.values() for d in gains}
  others = [d for d in found.corpus if d not in judged]
  kept = judged | {others[i] for i in rng.permutation(len(others))[
      :20 if small else _OTHERS]}
  return beir.Retrieval({d: t for d, t in found.corpus.items() if d in kept},
                        {q: found.queries[q] for q in qrels}, qrels)


def ndcg(model: Embedder, task: beir.Retrieval) -> list[float]:
  """nDCG@10 of every query of a task."""
  asked = model.encode_query(list(task.queries.values()), show_progress_bar=False)
  found = model.encode_document(list(task.corpus.values()), show_progress_bar=False)
  run = retrieval.rank(
      list(task.queries), asked, list(task.corpus), found, depth=10,
      similarity=model.similarity_fn_name)
  return [metrics.retrieval({q: task.qrels[q]}, run, (10,))['ndcg@10']
          for q in task.queries]


def row(arm: str, scores: dict[str, list[dict]]) -> dict[str, str]:
  """The cells of an arm: intervals, and those of its difference to random negatives."""
  cells = {'arm': arm}
  for task in scores[arm][0]:
    own = 100 * np.array([run[task] for run in scores[arm]])
    seeds = f', seeds ± {statistics.stdev(own.mean(1)):.2f}' if len(own) > 1 else ''
    cells[f'{task} nDCG@10'] = interval(own.mean(0)) + seeds
    if 'random' in scores and arm not in ('random', 'teacher', 'untrained'):
      base = 100 * np.array([run[task] for run in scores['random']])
      cells[f'{task}, to random'] = interval(own.mean(0) - base.mean(0), '+')
  return cells


def interval(values: np.ndarray, sign: str = '') -> str:
  """Mean of queries, and the middle 95 % of it in 2,000 samples of them."""
  rng = np.random.default_rng(0)
  means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
  low, high = np.quantile(means, (0.025, 0.975))
  return f'{values.mean():{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]'
