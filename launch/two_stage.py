"""Experiment: scores of the two-stage recipe, by stage, seed and pooling.

  jaxembed two_stage --workdir=runs/two_stage [--seeds=3] [--small]

Trains configs/two_stage_cpu.py for every seed with mean and with latent-attention
pooling, and scores the untrained model and each stage's end (score_card.py). Training
resumes and finished scores are kept: the same command continues. --small takes two
steps and few texts, to see that it runs; its figures mean nothing.
"""

import dataclasses
import json
import pathlib
import statistics
import time

from absl import flags
import jax
from ml_collections import config_flags

from jaxembed import bundle, config, embedder, sharding
from jaxembed.files import url, whole_json
from jaxembed.train import loop, start

from . import cli, tables
from .score_card import ScoreCard

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment file or recipe.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/two_stage', 'Folder of all runs.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many seeds, from 0.', lower_bound=1)
_SMALL = flags.DEFINE_bool('small', False, 'One seed, two steps, few texts.')
POOLINGS = ('mean', 'latent_attention')


def main():
  cfg, folder = _CONFIG.value, url.local(_WORKDIR.value, 'give a local --workdir')
  if _SMALL.value:
    folder = folder / 'small'
    for stage in cfg.stages:
      stage.steps, stage.optim.warmup_steps = 2, 0
  stop = cli.stop_on_signals()
  source = cfg.stages[0].data.sources[0].path  # FOLDER/train/NAME
  card = ScoreCard(pathlib.Path(source).parents[1], _SMALL.value)
  rows = [{'pooling': 'mean', 'after': 'no training', **_spread([_kept(
      folder / 'untrained.json', lambda: card.score(_untrained(cfg)))])}]
  for pooling in POOLINGS:
    found = {stage.name: [] for stage in cfg.stages}
    for seed in range(1 if _SMALL.value else _SEEDS.value):
      run = folder / f'{pooling}-{seed}'
      loop.train(dataclasses.replace(
          cfg, seed=seed, model=dataclasses.replace(cfg.model, pooling=pooling)),
          run, should_stop=stop)
      if stop():  # loop.train has said so
        return
      for stage in loop.stages(cfg):
        found[stage.cfg.name].append(_kept(
            run / f'scores_{stage.cfg.name}.json',
            lambda at=stage.last, run=run: card.score(_after(run, at))))
    rows += [{'pooling': pooling, 'after': name, **_spread(scores)}
             for name, scores in found.items()]
  print(f'\n{tables.markdown(rows)}')


def _kept(file: pathlib.Path, compute) -> dict[str, float]:
  """The scores in `file`; computed and written first if it is not there."""
  if not file.exists():
    begun = time.perf_counter()
    scores = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    whole_json.write(file, scores | {'seconds': time.perf_counter() - begun})
  scores = json.loads(file.read_text())
  print(f'{file}: {scores}')
  return {name: value for name, value in scores.items() if name != 'seconds'}


def _spread(runs: list[dict[str, float]]) -> dict[str, str]:
  """Mean and sample standard deviation, in points."""
  cells = {}
  for name in runs[0]:
    values = [100 * run[name] for run in runs]
    more = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    cells[name] = f'{statistics.mean(values):.2f}{more}'
  return cells


def _untrained(cfg) -> embedder.Embedder:
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  source = config.ModelSpec(source=cfg.model.source, fallback=cfg.model.fallback,
                            max_length=cfg.model.max_length)
  found = start.start(source, 0, mesh)
  return embedder.Embedder(found, mesh=mesh)


def _after(run: pathlib.Path, step: int) -> embedder.Embedder:
  return embedder.Embedder(bundle.open(run, step=step))


if __name__ == '__main__':
  cli.run(main, 'two_stage_cpu')
