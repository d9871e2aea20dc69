"""Where a run begins: weights, tokenizer and the model's final shape."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import warnings

import jax

from jaxembed import bundle, config, data, sharding, workdir
from jaxembed.bundle import Bundle
from jaxembed.data import prompts
from jaxembed.models import encoder, lora, presets


def start(spec: config.ModelSpec, seed: int, mesh) -> Bundle:
  """Opens `spec.source` (or draws `spec.preset`) and puts `spec` on top of it.

  A head the source does not have is drawn from `seed`. Parameters lie on the mesh.
  """
  shape = describe(spec)
  if spec.append_token and shape.tokenizer_folder:
    data.with_token(shape.tokenizer_folder, spec.append_token)
  model, wanted = shape.cfg, apply_spec(shape.cfg, spec)
  if spec.append_token and wanted.eos_text:
    raise ValueError(f'config.model.append_token={spec.append_token!r}, and behind '
                     f'every text the model has eos_text={wanted.eos_text!r} as well; '
                     'leave one out')
  key = jax.random.key(seed)
  begun = bundle.open(reachable(spec), mesh=mesh) if spec.source else shape
  params = begun.params
  with jax.set_mesh(mesh):
    if not spec.source:
      params = encoder.init_params(wanted, key)
    elif wanted.pooling != model.pooling:
      # Under jit the backbone that is not asked for is never drawn.
      draw = jax.jit(lambda k: encoder.init_params(wanted, k).get('pooling', {}))
      params = params | {'pooling': draw(key)}
    if wanted.lora and not model.lora:
      params = lora.add(params, wanted.lora, jax.random.fold_in(key, 1))
    return dataclasses.replace(
        begun, cfg=wanted, params=sharding.place(params, mesh))


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
  """What a run of `spec` starts from, without its weights."""
  if spec.source:
    found = bundle.open(reachable(spec), weights=False)
    plain = not (workdir.is_workdir(found.source)
                 or found.cfg.prompt_pooling == 'nv_embed'
                 or any((f / 'modules.json').is_file() for f in found.folders))
    if plain:  # no author has said how its vectors end; trained ones have length 1
      found = dataclasses.replace(
          found, cfg=dataclasses.replace(found.cfg, normalize=True))
    return found
  model = presets.get(spec.preset)
  return Bundle(params=encoder.param_shapes(model), cfg=model, source=spec.preset)


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


def resume(folder: pathlib.Path, mesh) -> Bundle:
  """The model of a run that has checkpoints: shapes and shardings, no weights."""
  return bundle.open(folder, mesh=mesh, weights=False)


def apply_spec(model: config.ModelConfig, spec: config.ModelSpec
               ) -> config.ModelConfig:
  """`model` with every field that `spec` sets."""
  pooling = model.pooling
  if spec.pooling and spec.pooling != pooling.kind:
    pooling = dataclasses.replace(
        pooling, kind=spec.pooling, latents=spec.latents, heads=spec.heads,
        head_dim=spec.head_dim, ff_mult=spec.ff_mult, reads=spec.reads)
  adapters = model.lora
  if spec.lora_rank and not adapters:
    targets = {'targets': spec.lora_targets} if spec.lora_targets else {}
    adapters = config.LoraConfig(rank=spec.lora_rank, alpha=spec.lora_alpha,
                                 dropout=spec.lora_dropout, **targets)
  if spec.attention == 'bidirectional' and not spec.keep_window:
    two_way = config.bidirectional(model)
    if two_way.backbone != model.backbone:
      warnings.warn(
          f'made bidirectional, every token sees the whole text: the source\'s window '
          f'of {model.backbone.window} tokens is left out (keep it with '
          'config.model.keep_window=True)', stacklevel=2)
    model = two_way
  return dataclasses.replace(
      model, pooling=pooling, lora=adapters,
      attention=spec.attention or model.attention,
      max_length=spec.max_length or model.max_length, dtype=spec.dtype,
      precision=spec.precision or model.precision,
      remat=spec.remat, prompt_pooling=spec.prompt_pooling or model.prompt_pooling,
      eos_text=spec.eos_text or model.eos_text)
