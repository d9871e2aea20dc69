"""Three quick evaluation tasks for a small model: minutes on two CPU cores."""

import itertools
import pathlib
from typing import Any

import numpy as np

from jaxembed.data import beir
from jaxembed.embedder import Embedder
from jaxembed.evaluation import classification, retrieval, sts

_PROBES = 1000  # test texts of the classification task, a fixed sample
_DRAWS = 5


class ScoreCard:
  """The tasks of a folder, read once.

  Cranfield (nDCG@10; texts are cut at the model's max_length), the STS benchmark's
  test (Spearman), Banking77 (a probe on 8 texts a label, 5 draws, 1,000 test texts).
  """

  def __init__(self, folder: pathlib.Path, small: bool = False):
    """`small` cuts every task to a handful of texts, to see that it runs."""
    self._retrieval = beir.load(folder / 'retrieval/cranfield')
    self._pairs = beir.load_scored(folder / 'sts/stsb/test.tsv')
    self._train, test = (beir.load_labelled(folder / 'classification/banking77', split)
                         for split in ('train', 'test'))
    rows = np.random.default_rng(0).permutation(len(test.texts))[:_PROBES]
    self._test = beir.LabelledTexts(*([side[i] for i in rows]
                                      for side in (test.texts, test.labels)))
    self._draws = {'experiments': _DRAWS}
    if small:
      self._shrink(20)

  def score(self, model: Embedder) -> dict[str, float]:
    """{'Cranfield nDCG@10', 'STS-B Spearman', 'Banking77 accuracy'}."""
    quiet: dict[str, Any] = {'show_progress_bar': False}
    task, pairs, train, test = self._retrieval, self._pairs, self._train, self._test
    found = retrieval.evaluate(model, task.corpus, task.queries, task.qrels,
                               cutoffs=(10,), **quiet)
    match = sts.evaluate(model, pairs.first, pairs.second, pairs.scores, **quiet)
    probe = classification.evaluate(model, train.texts, train.labels, test.texts,
                                    test.labels, **self._draws, **quiet)
    return {'Cranfield nDCG@10': found['ndcg@10'],
            'STS-B Spearman': match['spearman'],
            'Banking77 accuracy': probe['accuracy']}

  def _shrink(self, count: int):
    task, pairs = self._retrieval, self._pairs
    qrels = dict(itertools.islice(task.qrels.items(), count // 4))
    judged = {d for gains in qrels.values() for d in gains}
    self._retrieval = beir.Retrieval(
        {d: task.corpus[d] for d in task.corpus if d in judged},
        {q: task.queries[q] for q in qrels}, qrels)
    self._pairs = beir.ScoredPairs(
        pairs.first[:count], pairs.second[:count], pairs.scores[:count])
    self._test = beir.LabelledTexts(self._test.texts[:count], self._test.labels[:count])
    self._draws = {'experiments': 1, 'samples_per_label': 1}
