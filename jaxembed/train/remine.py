"""Negatives mined anew while a run trains, by its weights as they are.

    WORKDIR/mined/SOURCE/step-N/   vectors, candidates and mined.jsonl of step N

The first time all texts are encoded, later those that can have moved among a query's
candidates, by a bound that is seen and not proven (mining/refresh.py), or, with an
infinite StageConfig.remine_margin, all of them again. Rules are those that made the
source's rows. A resumed run reads the rows of the step that it goes on from, or makes
the same again.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any

import jax

from jaxembed import bundle, data, store, types
from jaxembed.config import SourceConfig, StageConfig
from jaxembed.embedder import Embedder
from jaxembed.files import place
from jaxembed.mining import candidates, collection, miner, refresh
from jaxembed.mining.rules import Rules
from jaxembed.train.stages import Stage

_TEACHER = 'run'


def spans(stage: Stage, done: int) -> Iterator[tuple[int, int, int]]:
  """(step that rows are of, first step done, last step) from `done` on.

  Rows of a stage's first step are those that its sources name.
  """
  every = stage.cfg.remine_every or stage.last - stage.first
  while done < stage.last:
    mined = stage.first + (done - stage.first) // every * every
    yield mined, done, min(mined + every, stage.last)
    done = min(mined + every, stage.last)


def check(stages: Sequence[StageConfig]) -> None:
  """Raises ValueError where one that mines anew cannot: there are several processes,
  or a source's rules compare scores of other teachers."""
  anew = [stage for stage in stages if stage.remine_every]
  if anew and jax.process_count() > 1:
    raise ValueError('StageConfig.remine_every works in one process, and there are '
                     f'{jax.process_count()}; set it to 0, and mine between two runs')
  for source in (s for stage in anew for s in stage.data.sources):
    if source.kind == 'mined':
      base = _base(source)
      found = candidates.searched_by(base)
      if (asked := _rules(base).teacher) not in ('', found):
        raise ValueError(
            f'source {source.name!r}: the rules of {base} compare scores of {asked!r}; '
            f'mining anew has those of the run alone. Apply rules by {found!r}, or set '
            'remine_every to 0')


def mixture(stage: Stage, mined: int, folder: pathlib.Path, params: types.Params,
            tokenizer: data.Tokenizer, mesh: jax.sharding.Mesh, log,
            rows: Mapping[str, Any] | None = None) -> data.Mixture:
  """The stage's mixture with the negatives of step `mined`.

  params: the weights of that step, where its rows are not there yet. rows: of sources
  of kind 'memory', as in loop.train.

  """
  model = dataclasses.replace(bundle.open(folder, weights=False), params=params)
  embedder = Embedder(model, mesh=mesh, tokenizer=tokenizer)
  sources = []
  for source in stage.cfg.data.sources:
    if source.kind == 'mined':
      target = folder / 'mined' / source.name / f'step-{mined}'
      if not (target / 'mined.json').exists():
        _mine(_base(source), target, stage, embedder, log)
      source = dataclasses.replace(source, path=str(target))
    sources.append(source)
  return data.open_mixture(
      dataclasses.replace(stage.cfg.data, sources=sources), given=rows)


def _mine(base: pathlib.Path, target: pathlib.Path, stage: Stage, embedder: Embedder,
          log) -> None:
  """Writes the rows of `base` with the negatives of the weights as they are."""
  texts = collection.load(base)
  rules = _rules(base)
  table = candidates.Table.load(texts)
  here = dataclasses.replace(texts, folder=target)
  before, products = _before(target), embedder.similarity_fn_name in ('dot', 'cosine')
  if not products or math.isinf(stage.cfg.remine_margin):
    before = None  # no bound, or none that is to be trusted
  if target.exists():
    shutil.rmtree(target)  # what a kill left, perhaps of other weights
  depth = table.rows.shape[1]
  if before is None:
    old = [store.open(base / 'vectors' / table.teacher / name).work['prompt']
           for name in ('queries', 'documents')]
    queries, documents = miner.encode_into(
        texts, embedder, target / 'vectors' / _TEACHER, miner.Prompts(*old))
    told = f'all {len(documents)} documents encoded'
  else:
    found = refresh.refresh(
        texts, embedder, store.open(before / 'queries'),
        store.open(before / 'documents'), target / 'vectors' / _TEACHER, depth=depth,
        margin=stage.cfg.remine_margin)
    queries, documents = found.queries, found.documents
    told = f'{found.encoded} of {len(documents)} documents encoded' + (
        f', the others taken to have moved by at most {found.bound:.4f} (those by '
        f'{found.moved:.4f})' if found.encoded < len(documents) else '')
  candidates.find(here, _TEACHER, queries, documents, depth,
                  embedder.similarity_fn_name,
                  mesh=None if jax.default_backend() == 'cpu' else embedder.mesh)
  account = miner.write_rows(here, candidates.Table.load(here),
                             dataclasses.replace(rules, teacher=''))
  log(f'mined      {target}: {told}; {account.taken} negatives')
  for old in _earlier(target)[:-1]:
    shutil.rmtree(old / 'vectors', ignore_errors=True)


def _base(source: SourceConfig) -> pathlib.Path:
  """The mining run of a source of mined rows, on this machine."""
  return place.fetched(source.path).expanduser()


def _rules(base: pathlib.Path) -> Rules:
  return Rules(**json.loads((base / 'mined.json').read_bytes())['made']['rules'])


def _before(target: pathlib.Path) -> pathlib.Path | None:
  """Vectors of the newest earlier step."""
  found = [old for old in _earlier(target) if (old / 'mined.json').exists()
           and (old / 'vectors').is_dir()]
  return found[-1] / 'vectors' / _TEACHER if found else None


def _earlier(target: pathlib.Path) -> list[pathlib.Path]:
  """Folders of earlier steps, oldest first."""
  step = lambda folder: int(folder.name.removeprefix('step-'))
  return sorted((old for old in target.parent.glob('step-*')
                 if step(old) < step(target)), key=step)
