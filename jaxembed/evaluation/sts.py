"""Semantic textual similarity: do cosines order pairs as people do?"""

from collections.abc import Sequence

from jaxembed.embedder import Embedder, unit
from jaxembed.evaluation import metrics


def evaluate(embedder: Embedder, first: Sequence[str], second: Sequence[str],
             scores: Sequence[float], *, prompt_name: str | None = None,
             batch_size: int = 32, truncate_dim: int | None = None,
             show_progress_bar: bool | None = None) -> dict[str, float]:
  """{'spearman': ..., 'pearson': ...} between cosines and the given scores.

  first, second, scores: [N], pair by pair. The task is symmetric, so both sides
  get the same prompt. A text is encoded once however often it occurs.
  """
  if not len(first) == len(second) == len(scores):
    raise ValueError(f'pairs need two texts and a score each, got {len(first)}, '
                     f'{len(second)} and {len(scores)}')
  row = {text: i for i, text in enumerate(dict.fromkeys([*first, *second]))}
  vectors = unit(embedder.encode(
      list(row), prompt_name, batch_size=batch_size, truncate_dim=truncate_dim,
      show_progress_bar=show_progress_bar))
  a, b = (vectors[[row[text] for text in side]] for side in (first, second))
  cosines = (a * b).sum(-1)
  return {'spearman': metrics.spearman(cosines, scores),
          'pearson': metrics.pearson(cosines, scores)}
