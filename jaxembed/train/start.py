"""The model that a run starts from: weights, tokenizer, new head and adapters."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import tempfile

import jax

from jaxembed import bundle, config, data, sharding
from jaxembed.bundle import Bundle
from jaxembed.data import prompts
from jaxembed.files import carried
from jaxembed.models import encoder, length, lora, presets, training_free
from jaxembed.train import model_spec
from jaxembed.train.model_spec import apply as apply_spec


def start(spec: config.ModelSpec, seed: int, mesh: jax.sharding.Mesh) -> Bundle:
  """Opens `spec.source` (or draws `spec.preset`) and puts `spec` on top of it.

  A head or adapters the source does not have are drawn from `seed`. Parameters lie on
  the mesh.

  Raises:
    ValueError, FileNotFoundError: as `resolve`, before weights are read.
  """
  wanted = resolve(spec, tokenizer=False)
  key = jax.random.key(seed)
  with jax.set_mesh(mesh):
    if not spec.source:
      return dataclasses.replace(wanted, params=encoder.init_params(wanted.cfg, key))
    source = bundle.open(wanted.source, mesh=mesh)
    params = source.params
    if model_spec.needs_new_head(source.cfg, wanted.cfg):
      # Under jit the backbone that is not asked for is never drawn.
      draw = jax.jit(lambda k: encoder.init_params(
          dataclasses.replace(wanted.cfg, lora=None), k)['pooling'])
      params = params | {'pooling': draw(key)}
    elif 'pooling' in params and wanted.cfg.pooling != source.cfg.pooling:
      params = {name: x for name, x in params.items() if name != 'pooling'}
    params = length.parameters(params, source.cfg, wanted.cfg,
                               jax.random.fold_in(key, 3))
    if wanted.cfg.lora and not source.cfg.lora:
      params = lora.add(params, wanted.cfg.lora, jax.random.fold_in(key, 1))
    if wanted.cfg.prepend and not source.cfg.prepend:
      params = training_free.with_row(params, jax.random.fold_in(key, 2))
    return dataclasses.replace(
        source, cfg=wanted.cfg, original=None, params=sharding.place(params, mesh))


def resolve(spec: config.ModelSpec, *, tokenizer: bool = True) -> Bundle:
  """The model that a run of `spec` starts from; `params` are shapes.

  Nothing is written and no weights are read. `tokenizer` False: the model may be
  without one.

  Raises:
    FileNotFoundError: no such source, or a model without a tokenizer.
    ValueError: something is asked of the source that cannot be (see model_spec).
  """
  found = describe(spec)
  if found.tokenizer_folder is None and spec.source and tokenizer:
    raise FileNotFoundError(
        f'config.model.source={spec.source!r} has no tokenizer.json to train with; '
        'AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes one')
  if found.tokenizer_folder is None and tokenizer:
    raise ValueError(
        f'config.model.preset={spec.preset!r} has no tokenizer to train with; name a '
        'folder or hub id that has one as config.model.tokenizer, or a source')
  if spec.append_token and found.tokenizer_folder is not None:
    data.with_token(found.tokenizer_folder, spec.append_token)
  wanted = dataclasses.replace(found, cfg=apply_spec(found.cfg, spec))
  if tokenizer:
    wanted.load_tokenizer()
  return dataclasses.replace(wanted, params=encoder.param_shapes(wanted.cfg))


def tokenizer(spec: config.ModelSpec) -> data.Tokenizer:
  """The tokenizer that the folder of a run of `spec` will have.

  Raises as `resolve`.
  """
  found = resolve(spec)
  if not spec.append_token or found.tokenizer_folder is None:
    return found.load_tokenizer()
  with tempfile.TemporaryDirectory() as copy:
    carried.copy(found.tokenizer_folder, copy)
    data.append_token(copy, spec.append_token)
    return data.Tokenizer.for_model(copy, found.cfg)


def changes(spec: config.ModelSpec) -> list[str]:
  """What a run of `spec` makes different from its source, one line each."""
  found = describe(spec)
  told = [f'model      {line}' for line in model_spec.changes(found.cfg, spec)]
  if spec.preset and found.cfg.backbone.vocab_size != presets.get(
      spec.preset).backbone.vocab_size:
    told.append(f'model      a table of {found.cfg.backbone.vocab_size} tokens is '
                f"drawn, as the tokenizer has; the preset's is smaller")
  return told


def with_prompts(model: Bundle, stages: Sequence[config.StageConfig],
                 log: Callable[[str], None]) -> Bundle:
  """`model` with the prompts that `stages` train it with (data.prompts.trained).

  Its own stay where training puts nothing in front, and under names that training does
  not use. `log` is told which prompts the model carries, and what it cannot carry.
  """
  found = prompts.trained(stages)
  sources = {s.name: s for stage in stages for s in stage.data.sources}
  if rows := [name for name, s in sources.items() if prompts.of_rows_alone(s)]:
    log(f'prompts    every row of {", ".join(rows)} brings its own instruction, so the '
        'model stores no prompt for it; give one to encode(prompt=...)')
  if not found:
    if any(model.prompts.values()) and not rows:
      log(f"prompts    the source's own stay, {_shown(model.prompts)}, though training "
          'puts none in front of its texts')
    return model
  log(f'prompts    the model carries {_shown(found)}')
  if 'query' not in found:
    own = ("the source's own" if any(model.prompts.get(n) for n in
                                      ('query', 'document', 'passage', 'corpus'))
           else 'none')
    log('prompts    the sources differ, so encode_query and encode_document use '
        f'{own}; name one of these: encode(prompt_name=...)')
  return dataclasses.replace(model, prompts={**model.prompts, **found})


def _shown(texts: Mapping[str, str]) -> str:
  return ', '.join(f'{name}: {text!r:.60}' if text else f'{name}: none'
                   for name, text in texts.items())


def describe(spec: config.ModelSpec) -> Bundle:
  """The source of `spec` as it is stored, without its weights."""
  if spec.source:
    return bundle.open(reachable(spec), weights=False)
  model = presets.get(spec.preset)
  if not spec.tokenizer:
    return Bundle(params=encoder.param_shapes(model), cfg=model, source=spec.preset)
  folder = bundle.locate(spec.tokenizer)
  size = data.Tokenizer.load(folder).vocab_size
  if size > model.backbone.vocab_size:  # a table that is drawn can have any size
    model = dataclasses.replace(
        model, backbone=dataclasses.replace(model.backbone, vocab_size=size))
  return Bundle(params=encoder.param_shapes(model), cfg=model, source=spec.preset,
                tokenizer_folder=folder)


def reachable(spec: config.ModelSpec) -> str:
  """`spec.source` if it can be had, else its fallback.

  Raises:
    FileNotFoundError: neither is here, nor does the hub give it.
  """
  try:
    bundle.locate(spec.source)
  except FileNotFoundError:
    if not spec.fallback:
      raise
    bundle.locate(spec.fallback)
    return spec.fallback
  return spec.source


def resume(folder: pathlib.Path, mesh: jax.sharding.Mesh) -> Bundle:
  """The model of a run that has checkpoints: shapes and shardings, no weights."""
  return bundle.open(folder, mesh=mesh, weights=False)
