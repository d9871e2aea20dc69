"""Semantic textual similarity: correlation of similarities with human scores."""

from collections.abc import Sequence

import numpy as np

from jaxembed import similarity
from jaxembed.embedder import Embedder
from jaxembed.evaluation import metrics


def evaluate(embedder: Embedder, first: Sequence[str], second: Sequence[str],
             scores: Sequence[float], *, prompt_name: str | None = None,
             prompt: str | None = None, batch_size: int = 32,
             truncate_dim: int | None = None,
             show_progress_bar: bool | None = None) -> dict[str, float]:
  """Correlation of similarities with the given scores: 'spearman' and 'pearson'.

  Similarities are those of the embedder's own function (Embedder.similarity_fn_name).
  first, second, scores: [N], pair by pair. The task is symmetric, so both sides
  get the same prompt. A text is encoded once however often it occurs.

  Raises:
    ValueError: lengths differ, or all scores are equal.
  """
  if not len(first) == len(second) == len(scores):
    raise ValueError(f'pairs need two texts and a score each, got {len(first)}, '
                     f'{len(second)} and {len(scores)}')
  if len(scores) < 2 or np.ptp(np.asarray(scores, np.float64)) == 0:
    raise ValueError(f'{len(scores)} pairs whose scores are all equal have no '
                     'correlation; give pairs of several scores')
  row = {text: i for i, text in enumerate(dict.fromkeys([*first, *second]))}
  vectors = embedder.encode(
      list(row), prompt_name, prompt, batch_size=batch_size,
      truncate_dim=truncate_dim, show_progress_bar=show_progress_bar)
  a, b = (vectors[[row[text] for text in side]] for side in (first, second))
  found = similarity.pairwise(embedder.similarity_fn_name, a, b)
  given = np.asarray(scores)
  return {'spearman': metrics.spearman(found, given),
          'pearson': metrics.pearson(found, given)}
