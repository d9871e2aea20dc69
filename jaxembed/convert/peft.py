"""LoRA adapters in the files of the PEFT library, both ways.

adapter_config.json and adapter_model.safetensors, with the tensors named after
the base model's modules: base_model.model.<module>.lora_A.weight [R,in] and
lora_B.weight [out,R].
"""

import dataclasses
import json
import os
import pathlib
import re

import jax.numpy as jnp
import numpy as np

from jaxembed.config import LoraConfig, ModelConfig
from jaxembed.convert import tables, tensor_files
from jaxembed.convert.fields import Fields
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.files import carried, checked_json, known_keys
from jaxembed.files.folder import short
from jaxembed.types import Params

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_MOST_RANKS = 2**14
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
                                  cfg.backbone.num_layers):
    paths = [p.removesuffix('kernel') for p in row.paths if p.endswith('/kernel')]
    if not any(f'{p}lora_a' in flat for p in paths):
      continue
    if len(paths) > 1:
      raise ValueError(f'{row.name} is one matrix in the checkpoint and {len(paths)} '
                       'here, each with its own adapter; merge the adapters instead')
    module = row.name.removesuffix('.weight')
    modules.add(module)
    name = _PREFIX + module.format(l=layer)
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
  """Whether the folder holds an adapter, and no model of its own."""
  return (folder / CONFIG).is_file() and not (folder / 'config.json').is_file()


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
  """`params` and `cfg` of the base model, with the adapters of `folder` on top.

  Raises:
    BadCheckpoint: a broken file, or tensors that do not fit this model, all
      listed in one message.
    UnsupportedModel: a kind of adapter that would compute something else.
  """
  folder = pathlib.Path(folder)
  adapter = _read_config(folder / CONFIG)
  if not (folder / WEIGHTS).is_file() and (folder / 'adapter_model.bin').is_file():
    raise BadCheckpoint(f'{folder} holds a pickled adapter, which may run code when '
                        "read; save it with PEFT's save_pretrained, which writes "
                        f'{WEIGHTS}')
  tensors = tensor_files.read_header(folder / WEIGHTS)
  left = {_strip(n, cfg): t for n, t in tensors.items()}
  flat = dict(tables.flatten(params))
  layers, problems = cfg.backbone.num_layers, []
  adapted: dict[str, list] = {}
  for row, layer in tables.expand(tables.backbone_table(cfg.backbone).rows, layers):
    if not row.name.endswith('.weight') or layer is None:
      continue
    module = row.name.removesuffix('.weight').format(l=layer)
    a, b = (left.pop(f'{module}.lora_{x}.weight', None) for x in 'AB')
    if a is None and b is None:
      continue
    shapes = [tables.matrix_shape(flat[p].shape[1:], row) for p in row.paths]
    wide = sum(s[0] for s in shapes)
    if (a is None or b is None or a.shape != (adapter.rank, shapes[0][1])
        or b.shape != (wide, adapter.rank)):
      problems.append(f'{module} wants A [{adapter.rank}, {shapes[0][1]}] and B '
                      f'[{wide}, {adapter.rank}], got '
                      f'{a and list(a.shape)} and {b and list(b.shape)}')
      continue
    at = 0
    for path, shape in zip(row.paths, shapes):
      part = b.read(at, at + shape[0]).T
      adapted.setdefault(path, [None] * layers)[layer] = (a.read().T, part)
      at += shape[0]
  problems += [f'{path} has adapters in some layers only'
               for path, slots in adapted.items() if None in slots]
  problems += [f'{short(name)[1:-1]} fits no module' for name in sorted(left)]
  if problems or not adapted:
    raise BadCheckpoint(
        f'{folder} is an adapter of another model than this {cfg.backbone.family}: '
        + '; '.join(problems[:20] or ['it has no tensors']))
  for path, slots in adapted.items():
    here, dtype = path.removesuffix('kernel'), flat[path].dtype
    flat[f'{here}lora_a'] = jnp.asarray(np.stack([a for a, _ in slots]), dtype)
    flat[f'{here}lora_b'] = jnp.asarray(np.stack([b for _, b in slots]), dtype)
  names = '|'.join(sorted(p.removesuffix('/kernel').removeprefix(tables.LAYERS)
                          for p in adapted))
  adapter = dataclasses.replace(adapter, targets=f'layers/({names})$')
  return tables.unflatten(flat), dataclasses.replace(cfg, lora=adapter)


def _read_config(file: pathlib.Path) -> LoraConfig:
  """The adapters' shape; which modules have them is told by the tensors."""
  data = checked_json.read(file)
  known_keys.check(data, known_keys.ADAPTER, str(file))
  lacking = [key for key in ('r', 'lora_alpha') if data.get(key) is None]
  if lacking:
    raise BadCheckpoint(f'{file} is no configuration of a LoRA adapter: it lacks '
                        f'{" and ".join(lacking)}')
  fields = Fields(data, str(file))
  return LoraConfig(
      rank=fields.whole('r', low=1, high=_MOST_RANKS),
      alpha=fields.number('lora_alpha'), targets='',
      dropout=fields.share('lora_dropout', 0.0),
      rslora=fields.flag('use_rslora', False))


def _strip(name: str, cfg: ModelConfig) -> str:
  name = name.removeprefix(_PREFIX)
  for prefix in tables.backbone_table(cfg.backbone).prefixes:
    name = name.removeprefix(prefix)
  return name
