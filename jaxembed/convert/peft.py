"""Adapters in the files of the PEFT library: LoRA written, LoRA and its kin read.

adapter_config.json and adapter_model.safetensors, with the tensors named after
the base model's modules: base_model.model.<module>.lora_A.weight [R,in] and
lora_B.weight [out,R].
"""

import dataclasses
import json
import os
import pathlib
import re
import warnings

import jax.numpy as jnp
import numpy as np

from jaxembed.config import LoraConfig, ModelConfig
from jaxembed.convert import peft_settings, peft_tensors, tables, tensor_files
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.files import carried, checked_json
from jaxembed.files.folder import short
from jaxembed.types import Params

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
# Of a whole model; an adapter beside one may be in it already, or not.
_WHOLE = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin',
          'pytorch_model.bin.index.json')
# More than a name of the hub has, and than a path that a system opens.
_LONGEST_NAME = 1000


def write(target: str | os.PathLike, params: Params, cfg: ModelConfig,
          base: str = '', tokenizer: pathlib.Path | None = None) -> None:
  """Writes the adapters of `params`.

  Args:
    target: folder to create.
    params: tree with adapters.
    cfg: its configuration.
    base: name or folder of the base model, for the record.
    tokenizer: folder whose tokenizer goes with the adapters; None: the base's will do.

  Raises:
    FileExistsError: target exists.
    ValueError: no adapters, or ones on parts of a matrix that the checkpoint
      holds fused (Phi-3, ModernBERT): PEFT has one A for the whole.
  """
  if cfg.lora is None:
    raise ValueError('the model has no LoRA adapters to write')
  flat = tables.flatten(params)
  tensors, modules = {}, set()
  for row, layer in tables.expand(tables.backbone_table(cfg.backbone).rows,
                                  cfg.backbone.stacked_layers):
    paths = [p.removesuffix('kernel') for p in row.paths if p.endswith('/kernel')]
    if not any(f'{p}lora_a' in flat for p in paths):
      continue
    if len(paths) > 1:
      raise ValueError(f'{row.name} is one matrix in the checkpoint and {len(paths)} '
                       'here, each with its own adapter; merge the adapters instead')
    module = row.name.removesuffix('.weight')
    modules.add(module)
    name = peft_tensors.PREFIX + module.format(l=layer)
    tensors[f'{name}.lora_A.weight'] = np.asarray(flat[f'{paths[0]}lora_a'][layer]).T
    tensors[f'{name}.lora_B.weight'] = np.asarray(flat[f'{paths[0]}lora_b'][layer]).T
  target = pathlib.Path(target)
  target.mkdir(parents=True)
  tensor_files.write(target / WEIGHTS,
                     {k: (v.dtype, v.shape) for k, v in tensors.items()},
                     tensors.__getitem__)
  (target / CONFIG).write_text(json.dumps(_config(cfg.lora, modules, base), indent=2,
                                          sort_keys=True) + '\n', 'utf-8')
  if tokenizer:
    carried.copy(tokenizer, target)


def _config(cfg: LoraConfig, modules: set[str], base: str) -> dict:
  names = '|'.join(re.escape(m).replace(r'\{l\}', r'\d+') for m in sorted(modules))
  return {'peft_type': 'LORA', 'bias': 'none', 'use_dora': False,
          'fan_in_fan_out': False, 'lora_bias': False, 'use_qalora': False,
          'base_model_name_or_path': base, 'r': cfg.rank, 'lora_alpha': cfg.alpha,
          'lora_dropout': cfg.dropout, 'use_rslora': cfg.rslora,
          'target_modules': rf'(.*\.)?({names})', 'inference_mode': True,
          'task_type': 'FEATURE_EXTRACTION'}


def is_adapter(folder: pathlib.Path) -> bool:
  """Whether the folder holds an adapter; its config.json, if any, is the base's.

  Raises:
    BadCheckpoint: it holds a whole model as well, or only folders of adapters.
  """
  here = (folder / CONFIG).is_file()
  others = [p.parent.name for p in sorted(folder.glob(f'*/{CONFIG}'))]
  whole = [name for name in _WHOLE if (folder / name).is_file()]
  if here and whole and (folder / WEIGHTS).is_file():
    raise BadCheckpoint(f'{folder} holds both a model ({whole[0]}) and an adapter '
                        f'({WEIGHTS}), and nothing says whether the one is part of the '
                        'other; take one of them out')
  if others and not here and not (folder / 'config.json').is_file() and not (
      folder / 'modules.json').is_file():
    raise BadCheckpoint(
        f'{folder} holds several adapters, each in a folder of its own: '
        f'{", ".join(others)}; open one, such as {folder / others[0]}')
  if here and others:
    warnings.warn(f'{folder}: its own adapter is read; beside it lie '
                  f'{", ".join(others)}, which open as folders', stacklevel=2)
  return here and not whole


def base(folder: pathlib.Path) -> str:
  """The base model that an adapter names: a folder or a hub id.

  A relative path is one from here, as PEFT reads it, or else from the adapter.

  Raises:
    BadCheckpoint: it names none, or what only a person may: a Python package, whose
      name alone can make code run; or it names another adapter.
  """
  file = folder / CONFIG
  name = checked_json.read(file).get('base_model_name_or_path')
  if not name:
    raise BadCheckpoint(f'{file} names no base model; write its folder or hub id as '
                        'base_model_name_or_path')
  if (not isinstance(name, str) or len(name) > _LONGEST_NAME or '\0' in name
      or name.startswith('package:')):
    raise BadCheckpoint(f'{file}: base_model_name_or_path is {short(name)}, which is '
                        'neither a folder nor a hub id; refused')
  found = next((p for p in (pathlib.Path(name), folder / name) if p.is_dir()), None)
  if found is not None and is_adapter(found):
    raise BadCheckpoint(f'{file} names {found} as its base model, which is an adapter '
                        'as well; name the model beneath')
  return name if found is None else str(found)


def read(folder: str | os.PathLike, params: Params, cfg: ModelConfig
         ) -> tuple[Params, ModelConfig]:
  """`params` and `cfg` of the base model, with the adapters of `folder` on top: beside
  its kernels where one rank and scale say it all, else merged into them, which a line
  tells.

  Raises:
    BadCheckpoint: a broken file, or tensors that do not fit this model, all
      listed in one message.
    UnsupportedModel: a kind of adapter that would compute something else.
  """
  folder = pathlib.Path(folder)
  settings = peft_settings.read(folder / CONFIG)
  if not (folder / WEIGHTS).is_file() and (folder / 'adapter_model.bin').is_file():
    raise BadCheckpoint(f'{folder} holds a pickled adapter, which may run code when '
                        "read; save it with PEFT's save_pretrained, which writes "
                        f'{WEIGHTS}')
  table = tables.backbone_table(cfg.backbone)
  tensors = tensor_files.read_header(folder / WEIGHTS)
  modules = peft_tensors.by_module(tensors, table)
  flat = dict(tables.flatten(params))
  layers, some = cfg.backbone.stacked_layers, bool(modules)
  _refuse_incomplete(folder, settings, tensors, modules, table.rows, layers)
  apart = settings.plain and _same_in_all_layers(modules, table.rows, layers)
  add = _beside if apart else peft_tensors.fold
  changed, problems = add(modules, settings, table.rows, flat, layers)
  problems += [f'{short(name)[1:-1]} fits no module'
               for name in peft_tensors.left(modules)]
  if problems or not some:
    raise BadCheckpoint(
        f'{folder} is an adapter of another model than this {cfg.backbone.family}: '
        + '; '.join(problems[:20] or ['it has no tensors']))
  params = tables.unflatten(flat | changed)
  if not apart:
    warnings.warn(
        f'{folder} is more than one low-rank update of one scale in all layers, so it '
        'was merged into its base: it can be trained on with the whole model, and '
        'exported with it', stacklevel=2)
    return params, cfg
  names = '|'.join(sorted({p.removeprefix(tables.LAYERS).rpartition('/')[0]
                           for p in changed}))
  return params, dataclasses.replace(cfg, lora=dataclasses.replace(
      settings.lora, targets=f'layers/({names})$'))


def _refuse_incomplete(folder, settings: peft_settings.Settings, tensors, modules, rows,
                       layers: int) -> None:
  """Raises BadCheckpoint if the file lacks what the settings say that it holds."""
  for name in settings.saved:
    if not any(f'.{name}.' in f'.{tensor}' for tensor in tensors):
      raise BadCheckpoint(f'{folder}/{CONFIG} lists {short(name)} in modules_to_save, '
                          f'but {WEIGHTS} holds no such module; save the adapter again')
  names = [row.name.format(l=layer) for row, layer in tables.expand(rows, layers)]
  for target in settings.targets:
    told = [name.removesuffix('.weight') for name in names
            if f'.{name}'.endswith(f'.{target}.weight')]
    lost = [name for name in told if name not in modules]
    if lost:
      raise BadCheckpoint(
          f'{folder}/{CONFIG} lists {short(target)} in target_modules, but {WEIGHTS} '
          f'has no update of {lost[0]} (of {len(lost)} of {len(told)} such modules); '
          'save the adapter again, or name its layers in layers_to_transform')


def _same_in_all_layers(modules, rows, layers: int) -> bool:
  """Whether there are low-rank updates alone, each of a matrix in all its layers."""
  with_pair = {name for name, module in modules.items()
               if set(module.parts) == {'lora_A.weight', 'lora_B.weight'}}
  for row in rows:
    names = {row.name.format(l=layer).removesuffix('.weight')
             for _, layer in tables.expand((row,), layers)}
    apart = '{l}' in row.name and row.paths[0].endswith('/kernel')
    if names & set(modules) and not (apart and names <= with_pair):
      return False
  return True


def _beside(modules, settings: peft_settings.Settings, rows, flat, layers: int
            ) -> tuple[dict, list[str]]:
  """The parameters of adapters beside their kernels, and what does not fit."""
  problems, adapted = [], {}
  for row, layer in tables.expand(rows, layers):
    module = row.name.removesuffix('.weight').format(l=layer)
    if module not in modules or not row.name.endswith('.weight'):
      continue
    a, b = (modules[module].parts.pop(f'lora_{x}.weight') for x in 'AB')
    shapes = [tables.part_shape(flat[p].shape, row, layer) for p in row.paths]
    wide, rank = sum(s[0] for s in shapes), settings.rank
    if a.shape != (rank, shapes[0][1]) or b.shape != (wide, rank):
      problems.append(
          f'{module} wants A [{rank}, {shapes[0][1]}] and B [{wide}, {rank}], got '
          f'{list(a.shape)} and {list(b.shape)}')
      continue
    at = 0
    for path, shape in zip(row.paths, shapes):
      part = b.read(at, at + shape[0]).T
      adapted.setdefault(path, [None] * layers)[layer] = (a.read().T, part)
      at += shape[0]
  changed = {}
  for path, pairs in adapted.items():
    none = tuple(map(np.zeros_like, next(filter(None, pairs))))
    pairs = [pair or none for pair in pairs]  # a place that no layer reads
    here, dtype = path.removesuffix('kernel'), flat[path].dtype
    for name, parts in zip(('lora_a', 'lora_b'), zip(*pairs)):
      changed[here + name] = jnp.asarray(np.stack(parts), dtype)
  return changed, problems
