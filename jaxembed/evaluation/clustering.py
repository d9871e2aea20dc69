"""Clustering evaluation: k-means of the vectors, V-measure against the labels."""

from collections.abc import Hashable, Sequence

import numpy as np

from jaxembed.embedder import Embedder

_BATCH = 500  # of MiniBatchKMeans, MTEB's


def evaluate(embedder: Embedder, texts: Sequence[str], labels: Sequence[Hashable], *,
             set_size: int = 2000, seed: int = 42, prompt_name: str | None = None,
             prompt: str | None = None, batch_size: int = 32,
             truncate_dim: int | None = None,
             show_progress_bar: bool | None = None) -> dict[str, float]:
  """V-measure of k-means, 'v_measure': the mean over sets of `set_size` texts in a row.

  Each set is split by k-means into as many clusters as it has labels, with MTEB's
  settings. What is left over at the end is a set if it is at least half as large.
  """
  if len(texts) != len(labels):
    raise ValueError(f'every text needs a label, got {len(texts)} and {len(labels)}')
  vectors = embedder.encode(
      list(texts), prompt_name, prompt, batch_size=batch_size,
      truncate_dim=truncate_dim, show_progress_bar=show_progress_bar)
  found = np.asarray(labels)
  starts = range(0, max(1, len(texts) - set_size // 2 + 1), set_size)
  return {'v_measure': float(np.mean([
      _v_measure(vectors[i:i + set_size], found[i:i + set_size], seed)
      for i in starts]))}


def _v_measure(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
  from sklearn import cluster, metrics  # of the extra 'evaluation'

  groups = cluster.MiniBatchKMeans(
      n_clusters=len(set(labels.tolist())), batch_size=_BATCH, n_init='auto',
      random_state=seed).fit_predict(vectors)
  return metrics.v_measure_score(labels, groups)
