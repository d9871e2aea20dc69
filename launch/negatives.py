"""Experiment: random, BM25 and mined negatives, with and without a teacher.

  jaxembed negatives --config=configs/negatives_cpu.py:FOLDER --workdir=DIR \\
      [--seeds=3] [--arms=random,bm25,mined,scores,vectors] [--small]

The student is the first layers of the configuration's model, which is the teacher: it
mines negatives (95 % of the positive's score), and its scores of them (arm `scores`:
InfoNCE and KL) or its vectors (arm `vectors`: InfoNCE and embedding matching) teach.
nDCG@10 on held-out queries, the mean over seeds, with 95 % intervals of a bootstrap
over queries, and its difference to random negatives. Runs resume, finished scores are
kept: the same command continues. --small shows that it runs; its figures mean nothing.
"""

import dataclasses
import json
import pathlib

from absl import flags
from ml_collections import config_flags
import numpy as np

from jaxembed import bundle, config
from jaxembed.embedder import Embedder
from jaxembed.files import url, whole_json
from jaxembed.train import loop, start

from . import cli, negatives_folder, negatives_rows, negatives_tasks, tables
from .negatives_tasks import Split

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file or recipe.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/negatives', 'Folder of all runs.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many seeds, from 0.', lower_bound=1)
_LAYERS = flags.DEFINE_integer('layers', 2, "The student's.", lower_bound=1)
_ARMS = flags.DEFINE_list('arms', list(negatives_rows.ARMS), 'What to compare.')
_SMALL = flags.DEFINE_bool('small', False, 'One seed, two steps, few texts.')


def main():
  cfg, stop = _CONFIG.value, cli.stop_on_signals()
  folder = url.local(_WORKDIR.value, 'give a local --workdir')
  if _SMALL.value:
    folder = folder / 'small'
    cfg.stages[0].steps, cfg.stages[0].optim.warmup_steps = 2, 0
  if unknown := [arm for arm in _ARMS.value if arm not in negatives_rows.ARMS]:
    raise ValueError(f'--arms: {unknown[0]!r} is no arm; there are '
                     f'{", ".join(negatives_rows.ARMS)}')
  negatives_folder.same_experiment(folder, {
      'config': config.to_dict(cfg), 'layers': _LAYERS.value})
  located = bundle.locate(start.reachable(cfg.model))
  teacher = Embedder.load(located)
  teacher.max_seq_length = cfg.model.max_length
  scifact = pathlib.Path(cfg.stages[0].data.sources[0].path).parents[1]
  found = negatives_tasks.split(cfg, scifact / 'retrieval/scifact', _SMALL.value)
  source = negatives_folder.student(located, _LAYERS.value, folder / 'student')
  cfg.model = dataclasses.replace(cfg.model, source=source, fallback='')
  untrained = Embedder.load(source)
  untrained.max_seq_length = cfg.model.max_length
  scores = {'teacher': [_kept(folder / 'teacher.json', teacher, found)],
            'untrained': [_kept(folder / 'untrained.json', untrained, found)]}
  for arm in _ARMS.value:
    stage = negatives_rows.stage(arm, cfg.stages[0], found.train, folder, teacher)
    scores[arm] = []
    for seed in range(1 if _SMALL.value else _SEEDS.value):
      run = folder / f'{arm}-{seed}'
      loop.train(dataclasses.replace(cfg, seed=seed, stages=[stage]), run,
                 should_stop=stop)
      if stop():  # loop.train has said so
        return
      scores[arm].append(_kept(run / 'scores.json', run, found))
  print(f'\n{tables.markdown([negatives_tasks.row(arm, scores) for arm in scores])}')


def _kept(file: pathlib.Path, model: Embedder | pathlib.Path, found: Split
          ) -> dict[str, list[float]]:
  """The scores of every held-out query, in `file`; computed first if they are not."""
  if not file.exists():
    model = model if isinstance(model, Embedder) else Embedder.load(model)
    whole_json.write(file, {
        name: negatives_tasks.ndcg(model, task) for name, task in found.tasks.items()})
  scores = json.loads(file.read_text())
  print(f'{file}: ' + ', '.join(
      f'{name} {np.mean(x):.4f}' for name, x in scores.items()))
  return scores


if __name__ == '__main__':
  cli.run(main, 'negatives_cpu')
