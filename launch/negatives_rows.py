"""Rows of the experiment on negatives: its arms, their sources."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib

import numpy as np

from jaxembed import config, data, teach
from jaxembed.embedder import Embedder
from jaxembed.files import whole_file
from jaxembed.mining import inputs, miner
from jaxembed.mining.rules import Rules

ARMS = 'random', 'bm25', 'mined', 'scores', 'vectors'
NEGATIVES = 3


def stage(arm: str, stage: config.StageConfig,
          train: Mapping[str, Sequence[tuple[str, str]]], folder: pathlib.Path,
          teacher: Embedder) -> config.StageConfig:
  """The stage with the arm's negatives and loss."""
  kind = arm if arm in ('random', 'bm25') else 'mined'
  sources = [dataclasses.replace(rows(
      kind, s.name, train[s.name], folder / 'rows', teacher), weight=s.weight,
      score_column=None if arm == 'scores' else '') for s in stage.data.sources]
  plus = {'scores': [config.LossConfig(
      name='distill_kl', temperature=stage.loss.temperature,
      teacher_temperature=stage.loss.temperature)],
          'vectors': [config.LossConfig(name='embed_match', weight=2.0)]}.get(arm, [])
  if arm == 'vectors':
    sources = taught(sources, teacher, folder / 'taught')
  return dataclasses.replace(
      stage, loss=dataclasses.replace(stage.loss, plus=plus),
      data=dataclasses.replace(stage.data, sources=sources))


def rows(kind: str, name: str, pairs: Sequence[tuple[str, str]], folder: pathlib.Path,
         teacher: Embedder) -> config.SourceConfig:
  """A source of a set with negatives of a kind: random, bm25 or mined."""
  plain = folder / f'{name}.jsonl'
  if not plain.exists():
    _write(plain, [{'query': q, 'positive': p} for q, p in pairs])
  source = config.SourceConfig(name=name, path=str(plain))
  if kind == 'bm25':
    return dataclasses.replace(source, rows='bm25')
  target = folder / f'{name}.{kind}.jsonl'
  if kind == 'mined' and not target.exists():
    texts = inputs.collect(folder / f'{name}.mining', source)
    table = miner.mine(texts, {'teacher': lambda: teacher},
                       depth=min(50, len(texts.documents)))
    miner.write_rows(texts, table, Rules(share=0.95, num_negatives=NEGATIVES), target,
                     say=print)
  if kind == 'random' and not target.exists():
    rng, texts = np.random.default_rng(1), [p for _, p in pairs]
    _write(target, [{'query': q, 'positive': p, 'negatives': [
        t for t in (texts[i] for i in rng.choice(len(texts), 2 * NEGATIVES, False))
        if t != p][:NEGATIVES]} for q, p in pairs])
  return dataclasses.replace(source, path=str(target))


def taught(sources: Sequence[config.SourceConfig], teacher: Embedder,
           folder: pathlib.Path) -> list[config.SourceConfig]:
  """The sources with the teacher's vectors of their texts."""
  texts = teach.texts(data.load(s) for s in sources)
  teach.encode(teacher, texts, folder)
  return [dataclasses.replace(s, teacher=(str(folder),)) for s in sources]


def _write(path: pathlib.Path, rows: Sequence[dict]):
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file.opened(path) as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)
