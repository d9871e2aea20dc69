"""Averaging of checkpoints (model soups), of one run or of several.

Wortsman et al. 2022 (model soups): models fine-tuned from the same weights are
often better averaged than any one of them.
"""

from collections.abc import Iterable, Sequence
import pathlib
import shutil

import jax
import numpy as np

from jaxembed import bundle, checkpoint, paths, types
from jaxembed.files import place


def mean(trees: Iterable[types.Params]) -> types.Params:
  """The mean of trees of one shape, summed in float32, in the first one's dtypes.

  One of them is held at a time, beside the sum.

  Raises:
    ValueError: two differ in their paths or shapes; the first difference is named.
  """
  total = first = None
  count = 0
  for count, tree in enumerate(trees, 1):
    if total is None:
      first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
      total = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), tree)
    _check_same(first, tree, count)
    total = jax.tree.map(lambda t, x: t + np.asarray(x, np.float32), total, tree)
  if not count:
    raise ValueError('there is nothing to average; name at least one checkpoint')
  return jax.tree.map(lambda t, x: (t / count).astype(x.dtype), total, first)


@place.remote(writes=('target',))
def average(runs: Sequence[str | pathlib.Path], target: str | pathlib.Path,
            last: int = 1) -> list[tuple[pathlib.Path, int]]:
  """Writes the mean of the last `last` checkpoints of every run as a workdir.

  Returns what went in: (run, step). `target` can be evaluated, exported and
  trained from like any run.

  Raises:
    FileExistsError: `target` is there.
    ValueError: the models differ, or a run has fewer checkpoints.
  """
  runs, target = [place.fetched(r) for r in runs], pathlib.Path(target)
  if target.exists():
    raise FileExistsError(f'{target} is there; choose another folder')
  parts = [(run, step) for run in runs for step in _last(run, last)]
  models = [bundle.open(run, weights=False).cfg for run in runs]
  for run, model in zip(runs, models):
    if model != models[0]:
      raise ValueError(f'{run} holds another model than {runs[0]}; only checkpoints '
                       'of one configuration of the model can be averaged')
  params = mean(bundle.open(run, step=step).params for run, step in parts)
  checkpoint.save_params(target / 'checkpoints', max(s for _, s in parts), params)
  # Last: model_config.json says that the folder is whole.
  shutil.copytree(runs[0] / 'model', target / 'model')
  return parts


def _last(run: pathlib.Path, count: int) -> list[int]:
  steps = checkpoint.steps(run / 'checkpoints')
  if not 1 <= count <= len(steps):
    raise ValueError(f'{run} has the checkpoints {steps}, so its last {count} cannot '
                     'be averaged; checkpoint.keep says how many a run keeps')
  return steps[-count:]


def _check_same(first, tree, number: int):
  shapes = [{path: x.shape for path, x in paths.flatten(t).items()}
            for t in (first, tree)]
  for path in sorted(shapes[0] | shapes[1]):
    a, b = (s.get(path) for s in shapes)
    if a != b:
      raise ValueError(f'checkpoint 1 has {path} of shape {a}, checkpoint {number} of '
                       f'shape {b}; only equal models can be averaged')
