"""Experiment from the arguments of `jaxembed.fit`: model, data and what matters most.

Everything else is a field of Config, which `replace` sets by its path.
"""

from collections.abc import Iterator, Mapping, Sequence
import copy
import dataclasses
import math
import os
import re
from typing import Any

import jax

from jaxembed import config, losses, workdir
from jaxembed.config import (
  Config,
  DataConfig,
  LoraConfig,
  LossConfig,
  ModelSpec,
  SourceConfig,
)
from jaxembed.data import given, sources
from jaxembed.embedder import Embedder
from jaxembed.models import length
from jaxembed.train import model_spec, start

# Where nothing is said: tokens of a text, for memory grows with the longest, and hard
# negatives of a row, as many as NV-Embed takes.
_LONGEST, _NEGATIVES = 512, 7
_LOOKED_AT = 1000  # rows, for the most negatives of one
_OF_STAGE = ('steps', 'epochs', 'batch_size', 'learning_rate', 'loss', 'temperature',
             'prompts', 'columns')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """What `fit` was told, None where nothing was; see there."""

  model: Any = None
  data: Any = None
  steps: int | None = None
  epochs: float | None = None
  batch_size: int | None = None
  learning_rate: float | None = None
  loss: str | LossConfig | losses.Loss | None = None
  temperature: float | None = None
  prompts: Mapping[str, str] | None = None
  eval_data: Any = None
  lora: int | LoraConfig | None = None
  pooling: str | config.PoolingConfig | None = None
  columns: Sequence[str] | None = None
  max_length: int | None = None
  seed: int | None = None
  config: Config | None = None
  replace: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A configuration, and what of it only a program can hold."""

  cfg: Config
  rows: dict[str, Any]  # of the sources in memory, by name
  eval_rows: dict[str, Any]
  loss: losses.Loss | None = None  # of the caller's own


def experiment(told: Arguments) -> Experiment:
  """What `fit` runs. Nothing is written, and no weights are read.

  Raises:
    TypeError, ValueError: an argument that means nothing; it is named.
    FileNotFoundError: no such model or file.
  """
  cfg = Config(name='fit') if told.config is None else copy.deepcopy(told.config)
  _check_stage(cfg, told)
  cfg.model = _model(cfg.model, told)
  data = given.Given(cfg.stages[0].data.sources, {})
  if told.data is not None:
    data = _known(given.given(told.data, 'data'), data.sources)
  elif told.config is None:
    raise TypeError('fit() needs data: rows, a file, or a Config that names sources')
  cfg.stages[0].data.sources = _ruled(data.sources, told)
  held_out = given.Given([], {})
  if told.eval_data is not None:
    held_out = _known(given.given(told.eval_data, 'eval_data'),
                      [cfg.eval.source] if cfg.eval.source else [])
    if len(held_out.sources) > 1:
      raise ValueError(f'eval_data names {len(held_out.sources)} sets; give one')
    cfg.eval = dataclasses.replace(cfg.eval, source=_ruled(
        held_out.sources, dataclasses.replace(told, prompts=None))[0])
  if told.seed is not None:
    cfg.seed = told.seed
  own = _loss(cfg.stages[0], told)
  _replace(cfg, told)  # of the sources, which are opened now
  _sizes(cfg, data.rows, told)
  _replace(cfg, told)  # all else has the last word
  return Experiment(config.validate(cfg), data.rows, held_out.rows, own)


def paths(name: str) -> list[str]:
  """Where in a Config of one stage the fields of this name stand."""
  return list(_paths(Config(), name, ''))


# --- the model -----------------------------------------------------------------


def _model(spec: ModelSpec, told: Arguments) -> ModelSpec:
  model = told.model
  elsewhere = {'preset': '', 'fallback': '', 'tokenizer': ''}
  if isinstance(model, ModelSpec):
    spec = model
  elif isinstance(model, Embedder):
    spec = dataclasses.replace(spec, **elsewhere, **_of_embedder(model))
  elif isinstance(model, str | os.PathLike):
    spec = dataclasses.replace(spec, **elsewhere, source=os.fspath(model))
  elif model is not None:
    raise TypeError(
        f'model is {type(model).__name__}; give a hub id, a folder or a '
        'jaxembed.Embedder (save a model of another library to a folder first)')
  elif told.config is None:
    raise TypeError('fit() needs a model: a hub id, a folder or a jaxembed.Embedder')
  asked = {'pooling': told.pooling, 'max_length': told.max_length}
  if isinstance(told.lora, LoraConfig):
    asked['lora'] = told.lora
  elif isinstance(told.lora, int) and not isinstance(told.lora, bool):
    asked['lora_rank'] = told.lora
  elif told.lora is not None:
    raise TypeError(f'lora is {told.lora!r:.60}; give the rank of the adapters, such '
                    'as 16, or a LoraConfig')
  return dataclasses.replace(
      spec, **{name: value for name, value in asked.items() if value is not None})


def _of_embedder(model: Embedder) -> dict[str, Any]:
  """Fields of a ModelSpec that starts from what an Embedder was loaded from.

  Raises:
    ValueError: the Embedder is no longer that.
  """
  now, source = model.to_bundle(), model.bundle.source
  newest = [now.step] if now.step is None else workdir.steps(source)[-1:]
  if not source or now.params is not model.bundle.params or [now.step] != newest:
    raise ValueError("the Embedder's parameters are not those that training would "
                     f'start from at {source or "no folder"!r}; save it and give that '
                     'folder: model.save(FOLDER)')
  stored = start.describe(ModelSpec(source=source))
  fields: dict[str, Any] = {}
  if now.cfg.length is not None and stored.cfg.length is None:  # Embedder.load(length=)
    fields['length'] = now.cfg.length
    stored = dataclasses.replace(
        stored, cfg=length.configure(stored.cfg, now.cfg.length))
  fields |= {name: value for name in model_spec.PLAIN
             if (value := getattr(now.cfg, name)) != getattr(stored.cfg, name)}
  plain = {name: x for name, x in fields.items() if name != 'length'}
  if now.cfg != dataclasses.replace(
      stored.cfg, **plain, normalize=now.cfg.normalize):
    raise ValueError(f"the Embedder's cfg is not the one of {source!r}, where training "
                     'starts; save it and give that folder: model.save(FOLDER)')
  for name, value in now.settings.items():
    if value != stored.settings.get(name):
      remedy = ("load it without, and give fit() prompts={'query': TEXT, "
                "'document': TEXT}" if name == 'prompts' else
                'save it, and give that folder')
      raise ValueError(f'the Embedder has another {name} than {source!r}, where '
                       f'training starts; {remedy}')
  return {'source': source, **fields}


# --- the stage -----------------------------------------------------------------


def _check_stage(cfg: Config, told: Arguments) -> None:
  """Raises ValueError if what is about one stage is given for several."""
  if not cfg.stages:
    raise ValueError('config.stages is empty; give at least one StageConfig')
  for name in ('data', *_OF_STAGE):
    if getattr(told, name) is not None and len(cfg.stages) != 1:
      raise ValueError(f'{name} is about one stage, and the Config has '
                       f'{len(cfg.stages)}; set it in config.stages')
  if told.steps is not None and told.epochs is not None:
    raise ValueError(f'steps={told.steps} and epochs={told.epochs} are both given; '
                     'leave one out')
  if told.epochs is not None and not 0 < told.epochs < math.inf:
    raise ValueError(f'epochs is {told.epochs}; give a number above 0')


def _loss(stage: config.StageConfig, told: Arguments) -> losses.Loss | None:
  """Puts the loss that is asked for into the stage; returns one of the caller's own."""
  own = None
  if isinstance(told.loss, LossConfig):
    stage.loss = told.loss
  elif isinstance(told.loss, str):
    stage.loss = dataclasses.replace(stage.loss, name=told.loss)
  elif callable(told.loss):
    own = told.loss
  elif told.loss is not None:
    raise TypeError(f'loss is {told.loss!r:.60}; give the name of a loss '
                    f'({", ".join(losses.LOSSES)}), a LossConfig, or a losses.Loss')
  if told.temperature is not None:
    stage.loss = dataclasses.replace(stage.loss, temperature=told.temperature)
  return own


def _known(found: given.Given, before: Sequence[SourceConfig]) -> given.Given:
  """What is given, with the rules that a Config has for rows of these names."""
  own = {s.name: s for s in before if s.kind == 'memory'}
  return dataclasses.replace(found, sources=[
      own.get(s.name, s) if s.name in found.rows else s for s in found.sources])


def _ruled(found: Sequence[SourceConfig], told: Arguments) -> list[SourceConfig]:
  """The sources with the prompts and names of columns that are asked for."""
  if told.prompts is not None:
    found = given.with_prompts(found, told.prompts)
  if told.columns is not None:
    found = [dataclasses.replace(s, columns=tuple(told.columns)) for s in found]
  return list(found)


def _sizes(cfg: Config, rows: dict[str, Any], told: Arguments) -> None:
  """Sets batches, steps and rates; without a Config all that follows from rows and
  model."""
  stage, chosen = cfg.stages[0], told.config is None
  if told.learning_rate is not None:
    stage.optim = dataclasses.replace(stage.optim, peak_lr=told.learning_rate)
  opened = [sources.load(dataclasses.replace(s), given=rows)
            for s in stage.data.sources] if chosen or told.epochs is not None else []
  fields = _chosen(cfg.model, stage.data, opened) if chosen else {}
  if told.batch_size is not None:
    fields['batch_size'] = told.batch_size
  stage.data = dataclasses.replace(stage.data, **fields)
  _replace(cfg, told)  # the size of a batch, for the steps
  if told.steps is not None:
    stage.steps = told.steps
  elif opened:
    count = (told.epochs or 1) * sum(map(len, opened))
    stage.steps = max(1, int(count // stage.data.batch_size))
  if chosen:
    stage.optim = dataclasses.replace(stage.optim, warmup_steps=stage.steps // 10)
    quarter = -(-stage.steps // 4)
    cfg.checkpoint = dataclasses.replace(cfg.checkpoint, every=min(500, quarter))
    cfg.log_every = max(1, min(cfg.log_every, stage.steps // 20))
    if cfg.eval.source is not None:
      cfg.eval = dataclasses.replace(cfg.eval, every=quarter)


def _chosen(spec: ModelSpec, data: DataConfig, opened: Sequence[Sequence]
            ) -> dict[str, Any]:
  """Fields of a DataConfig that rows and model speak for.

  Every row comes once an epoch. Batches have lengths of powers of two, up to what the
  model takes, and room for the rows' hard negatives.
  """
  found = start.resolve(spec)
  most = min(filter(None, (found.cfg.max_length, spec.max_length or _LONGEST,
                           found.load_tokenizer().model_max_length)))
  lengths = (*(2**k for k in range(5, 13) if 2**k < most), most)
  devices = jax.device_count()
  batch = min(data.batch_size, sum(map(len, opened))) // devices * devices
  weighted = data.sources
  if len(weighted) > 1 and all(s.weight == 1 for s in weighted):
    weighted = [dataclasses.replace(s, weight=float(len(rows)))
                for s, rows in zip(data.sources, opened)]
  return {'query_lengths': lengths, 'passage_lengths': lengths,
          'batch_size': batch or devices, 'sources': weighted,
          'num_negatives': max(0, *map(_negatives, opened),
                               *(s.num_negatives for s in data.sources))}


def _negatives(rows: Sequence) -> int:
  """The most hard negatives of a row, up to _NEGATIVES."""
  found = sources.plain(rows)
  return min(_NEGATIVES, max(len(found[i].negatives) for i in sources.spread(
      len(found), _LOOKED_AT)))


# --- fields by path ------------------------------------------------------------


def _replace(cfg: Config, told: Arguments) -> None:
  """Sets the fields that `replace` names."""
  for path, value in (told.replace or {}).items():
    *parents, last = re.findall(r'\w+', config.field_path(path))
    node: Any = cfg
    for part in parents:
      node = node[int(part)] if part.isdigit() else getattr(node, part)
    if node is None:
      raise ValueError(f'replace names {path!r}, and there is no {".".join(parents)}; '
                       'set that first')
    setattr(node, last, value)


def _paths(node: Any, name: str, here: str) -> Iterator[str]:
  for field in dataclasses.fields(node):
    value = getattr(node, field.name)
    if field.name == name:
      yield here + name
    if field.name == 'stages':
      yield from _paths(value[0], name, f'{here}stages[0].')
    elif dataclasses.is_dataclass(value):
      yield from _paths(value, name, f'{here}{field.name}.')
