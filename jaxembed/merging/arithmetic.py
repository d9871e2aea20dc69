"""Merging methods on single tensors, in float64 on the host.

Every method gives weights to the models' own numbers and to those they began from,
never to rounded differences: where the weights of models that agree add up to one,
what they agree on comes out bit for bit.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from jaxembed.merging import slerp

# How far a sum of weights may be from 1 by its own rounding.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Options:
  """What the methods read beside the models.

  Attributes:
    weights: one per model. Of soup, slerp and ties they are relative; of
      task_arithmetic they multiply the task vectors. (): 1/n each.
    density: of ties, the share of each task vector that is kept, its largest entries
      (the paper's k; it recommends 0.2). 1 keeps all.
    scale: what the merged task vector is multiplied with (task_arithmetic, ties).
    whole: of slerp, one angle for the whole model instead of one per tensor.
  """

  weights: tuple[float, ...] = ()
  density: float = 1.0
  scale: float = 1.0
  whole: bool = False

  def of(self, count: int) -> np.ndarray:
    """The weights of `count` models, float64.

    Raises:
      ValueError: another number of weights, or one that is not finite.
    """
    if not self.weights:
      return np.full(count, 1 / count)
    found = np.array(self.weights, np.float64)
    if len(found) != count or not np.isfinite(found).all():
      raise ValueError(f'weights {list(self.weights)} do not belong to {count} models; '
                       'give a finite number for each')
    return found

  def relative(self, count: int) -> np.ndarray:
    """The weights divided by their sum.

    Raises:
      ValueError: as `of`; one is below 0, or all are 0.
    """
    found = self.of(count)
    if (found < 0).any() or not found.sum():
      raise ValueError(f'weights {list(self.weights)} must be 0 or more, and one of '
                       'them above; only task_arithmetic subtracts models')
    return found / found.sum()


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to merge: which inputs it wants, and what it does with a tensor.

  Attributes:
    merge: (tensors, the start's tensor or None, options) -> tensor; all float64 of
      one shape.
    base: whether it needs the weights that the models began from: 'needed', 'used'
      where given, or 'unused'.
    options: fields of Options that it reads.
  """

  merge: Callable[[Sequence[np.ndarray], np.ndarray | None, Options], np.ndarray]
  base: str
  options: tuple[str, ...]


def weighted(tensors: Sequence[np.ndarray], base: np.ndarray | None,
             weights: np.ndarray) -> np.ndarray:
  """base + sum_i weights[i] (tensors[i] - base); without a base the sum alone."""
  total = np.zeros_like(tensors[0])
  for weight, x in zip(weights, tensors):
    total = total + weight * x
  rest = 1 - weights.sum()
  if base is None or abs(rest) < _ROUNDING:
    return total
  return rest * base + total


def soup(tensors: Sequence[np.ndarray], base: np.ndarray | None, options: Options
         ) -> np.ndarray:
  """The weighted mean (Wortsman et al. 2022, arXiv 2203.05482)."""
  return weighted(tensors, None, options.relative(len(tensors)))


def task_arithmetic(tensors: Sequence[np.ndarray], base: np.ndarray | None,
                    options: Options) -> np.ndarray:
  """base + scale sum_i w_i (x_i - base) (Ilharco et al. 2022, arXiv 2212.04089)."""
  return weighted(tensors, base, options.scale * options.of(len(tensors)))


def interpolate(tensors: Sequence[np.ndarray], base: np.ndarray | None,
                options: Options) -> np.ndarray:
  """Spherical interpolation; of task vectors where there is a base, else of weights.

  More than two are folded one after another (Qwen3-Embedding's last stage).
  """
  start = 0 if base is None else base
  gram = slerp.gram([x - start for x in tensors])
  shares = slerp.shares(list(options.relative(len(tensors))))
  return weighted(tensors, base, slerp.coefficients(gram, shares))


def ties(tensors: Sequence[np.ndarray], base: np.ndarray | None, options: Options
         ) -> np.ndarray:
  """Trim, elect sign, disjoint mean (Yadav et al. 2023, arXiv 2306.01708).

  Of each task vector the `density` largest entries are kept; the sign of an entry is
  that of the sum of what is left, and the models of that sign are averaged.
  """
  assert base is not None
  weights = options.relative(len(tensors))
  kept = [_largest(x - base, options.density) for x in tensors]
  elected = np.sign(sum(w * v for w, v in zip(weights, kept)))
  votes = [w * ((v != 0) & (np.sign(v) == elected)) for w, v in zip(weights, kept)]
  total = sum(votes)
  any_votes = total > 0
  mean = sum(c * x for c, x in zip(votes, tensors)) / np.where(any_votes, total, 1)
  moved = options.scale * mean
  if options.scale != 1:
    moved = moved + (1 - options.scale) * base
  return np.where(any_votes, moved, base)


def _largest(v: np.ndarray, density: float) -> np.ndarray:
  """`v` with all but its int(density n) largest entries (at least one) set to 0."""
  if density >= 1:
    return v
  flat, count = np.abs(v).reshape(-1), max(int(density * v.size), 1)
  kept = np.zeros(v.size, bool)
  kept[np.argpartition(flat, v.size - count)[v.size - count:]] = True
  return np.where(kept.reshape(v.shape), v, 0)


DEFAULTS = Options()
METHODS = {
    'soup': Method(soup, 'unused', ('weights',)),
    'task_arithmetic': Method(task_arithmetic, 'needed', ('weights', 'scale')),
    'slerp': Method(interpolate, 'used', ('weights', 'whole')),
    'ties': Method(ties, 'needed', ('weights', 'density', 'scale')),
}
