"""Where a run begins: weights, tokenizer and the model's final shape."""

import dataclasses
import pathlib

import jax
from jax.sharding import NamedSharding

from jaxembed import config, data, sharding, types, workdir
from jaxembed.convert import from_hf
from jaxembed.models import encoder, lora, presets


@dataclasses.dataclass(frozen=True)
class Start:
  model: config.ModelConfig
  params: types.Params  # on the mesh, sharded by the parameter table
  folders: tuple[pathlib.Path, ...]  # with tokenizer, prompts, configuration


def start(spec: config.ModelSpec, seed: int, mesh) -> Start:
  """Loads `spec.source` (or draws `spec.preset`) and puts `spec` on top of it.

  A head the source does not have is drawn from `seed`.
  """
  if spec.source and workdir.is_workdir(spec.source):
    params, model, folder, _ = workdir.load(spec.source)
    folders = (folder,)
  elif spec.source:
    folder = reachable(spec)
    if spec.append_token and (folder / 'tokenizer.json').is_file():
      data.with_token(folder, spec.append_token)  # its errors, before weights are read
    loaded = from_hf.load(folder, mesh=mesh)
    params, model = loaded.params, loaded.cfg
    folders = (loaded.folder, loaded.backbone_folder)
  else:
    params, model, folders = None, presets.get(spec.preset), ()
  wanted = apply_spec(model, spec)
  if spec.append_token and wanted.eos_text:
    raise ValueError(f'config.model.append_token={spec.append_token!r}, and behind '
                     f'every text the model has eos_text={wanted.eos_text!r} as well; '
                     'leave one out')
  key = jax.random.key(seed)
  with jax.set_mesh(mesh):
    if params is None:
      params = encoder.init_params(wanted, key)
    elif wanted.pooling != model.pooling:
      # Under jit the backbone that is not asked for is never drawn.
      draw = jax.jit(lambda k: encoder.init_params(wanted, k).get('pooling', {}))
      params = params | {'pooling': draw(key)}
    if wanted.lora and not model.lora:
      params = lora.add(params, wanted.lora, jax.random.fold_in(key, 1))
    return Start(wanted, sharding.place(params, mesh), folders)


def reachable(spec: config.ModelSpec) -> pathlib.Path:
  """The folder of `spec.source`, or of its fallback.

  Raises:
    FileNotFoundError: neither is here, nor does the hub give it.
  """
  try:
    return from_hf.locate(spec.source)
  except FileNotFoundError:
    if not spec.fallback:
      raise
    return from_hf.locate(spec.fallback)


def resume(folder: pathlib.Path, mesh) -> Start:
  """The start of a run that has checkpoints: shapes and shardings, no weights."""
  model = workdir.load_model_config(folder)
  return Start(model, abstract(encoder.param_shapes(model), mesh), ())


def abstract(params: types.Params, mesh) -> types.Params:
  """jax.ShapeDtypeStructs of `params` on the mesh."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=NamedSharding(mesh, s)),
      params, sharding.param_specs(params))


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
  return dataclasses.replace(
      model, pooling=pooling, lora=adapters,
      attention=spec.attention or model.attention,
      max_length=spec.max_length or model.max_length, dtype=spec.dtype,
      precision=spec.precision or model.precision,
      remat=spec.remat, prompt_pooling=spec.prompt_pooling or model.prompt_pooling,
      eos_text=spec.eos_text or model.eos_text)
