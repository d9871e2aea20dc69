"""NV-Embed v1 and v2 in their published layout (Lee et al., arXiv 2405.17428).

Written from the paper and the files' own structure. Everything is read and
written as data: the repository's Python is never run. A model that is loaded and
written back has the same tensors, byte for byte, in the same files.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from jaxembed.config import BackboneConfig, ModelConfig, PoolingConfig
from jaxembed.convert import configs, tables, tensor_files
from jaxembed.convert.fields import Fields
from jaxembed.convert.tables import Row, Table
from jaxembed.files import carried, checked_json
from jaxembed.files.folder import short
from jaxembed.models import encoder
from jaxembed.types import Params

# A shard ends before the tensor that would take it beyond this.
SHARD_BYTES = 5_000_000_000
# Tokenisation: appended to every text as text, and recognised as a special token.
EOS_TEXT = '</s>'
_HEAD = 'latent_attention_model.'
_BODY = 'embedding_model.'
# The release's own, and the only one that is ever written: it names files that are
# not, and lets a reader who adds the release's two files open the folder.
_AUTO_MAP = {'AutoConfig': 'configuration_nvembed.NVEmbedConfig',
             'AutoModel': 'modeling_nvembed.NVEmbedModel'}
# Fields of latent_attention_config that the released config.json leaves out.
_HEAD_DEFAULTS = {'num_latents_value': 512, 'num_cross_heads': 8,
                  'output_normalize': True, 'cross_dim_head': 4096}


def is_nv_embed(folder: pathlib.Path) -> bool:
  """Whether config.json in `folder` is NV-Embed's."""
  file = folder / 'config.json'
  if not file.is_file():
    return False
  return checked_json.read(file).get('model_type') == 'nvembed'


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
  """The model that an NV-Embed config.json describes.

  The window of its text_config is not applied: the reference gives attention an
  explicit mask without a band, so every token sees the whole text.
  """
  fields = Fields(hf)
  text = fields.object('text_config', {})
  if text.get('model_type') != 'bidir_mistral':
    raise configs.UnsupportedModel(
        "config.json of model_type 'nvembed' needs a text_config of model_type "
        f"'bidir_mistral', not {short(text.get('model_type'))}")
  backbone = configs.config_from_hf(
      {**text, 'model_type': 'mistral', 'sliding_window': None})
  head = Fields(_HEAD_DEFAULTS | fields.object('latent_attention_config', {}),
                'config.json: latent_attention_config')
  for key in ('hidden_dim', 'latent_dim'):
    if head.whole(key, backbone.dim) != backbone.dim:
      raise configs.UnsupportedModel(
          f"{head.file}: {key}={head.data[key]} is not the backbone's width "
          f'{backbone.dim}')
  pooling = PoolingConfig(
      kind='latent_attention', latents=head.size('num_latents_value'),
      heads=head.size('num_cross_heads'), head_dim=head.size('cross_dim_head'),
      ff_mult=4)
  return ModelConfig(backbone=backbone, pooling=pooling, attention='bidirectional',
                     normalize=head.flag('output_normalize', True),
                     max_length=backbone.max_positions,
                     prompt_pooling='nv_embed', eos_text=EOS_TEXT)


def table(cfg: BackboneConfig) -> Table:
  """All tensors, in the order of the modules: it decides where shards end."""
  body = (dataclasses.replace(row, name=_BODY + row.name)
          for row in tables.backbone_table(cfg).rows)
  return Table((*_head_rows(), *body), prefixes=())


def _head_rows() -> Iterator[Row]:
  attend, mlp = f'{_HEAD}cross_attend_blocks.0.', f'{_HEAD}cross_attend_blocks.1.'

  def norm(name, path):
    yield Row(f'{name}.weight', (f'pooling/{path}/scale',))
    yield Row(f'{name}.bias', (f'pooling/{path}/bias',))

  def linear(name, *paths):
    yield Row(f'{name}.weight', tuple(f'pooling/mlp/{p}/kernel' for p in paths),
              transpose=True)
    yield Row(f'{name}.bias', tuple(f'pooling/mlp/{p}/bias' for p in paths))

  yield Row(f'{_HEAD}latents', ('pooling/latents',))
  yield Row(f'{attend}fn.to_q.weight', ('pooling/q/kernel',), transpose=True,
            out_axes=2)
  yield Row(f'{attend}fn.to_kv.weight', ('pooling/k/kernel', 'pooling/v/kernel'),
            transpose=True, out_axes=2)
  yield Row(f'{attend}fn.to_out.weight', ('pooling/out/kernel',), transpose=True)
  yield from norm(f'{attend}norm', 'norm')
  yield from norm(f'{attend}norm_context', 'norm_context')
  yield from linear(f'{mlp}fn.net.0', 'up', 'gate')  # the first half is gated
  yield from linear(f'{mlp}fn.net.2', 'down')
  yield from norm(f'{mlp}norm', 'mlp_norm')


# --- Writing -----------------------------------------------------------------

# name -> (dtype, shape) of every tensor of one file
Shard = dict[str, tuple[np.dtype, tuple[int, ...]]]


def plan(cfg: ModelConfig, dtype: Any = np.float16, limit: int = SHARD_BYTES
         ) -> dict[str, Shard]:
  """File name -> its tensors; from shapes alone, no weights are needed."""
  dtype = np.dtype(dtype)
  tensors = {name: (dtype, x.shape) for name, x in tables.lazy(
      encoder.param_shapes(cfg), cfg, table(cfg.backbone).rows).items()}
  sizes = [(name, int(np.prod(shape)) * dtype.itemsize)
           for name, (_, shape) in tensors.items()]
  shards = tensor_files.split(sizes, limit)
  return {_file_name(i, len(shards)): {name: tensors[name] for name in names}
          for i, names in enumerate(shards)}


def index(shards: Mapping[str, Shard]) -> str:
  """Text of model.safetensors.index.json."""
  weight_map = {name: file for file, shard in shards.items() for name in shard}
  total = sum(int(np.prod(shape)) * dtype.itemsize
              for shard in shards.values() for dtype, shape in shard.values())
  return _json({'metadata': {'total_size': total}, 'weight_map': weight_map})


def write(target: pathlib.Path, params: Params, cfg: ModelConfig,
          source: pathlib.Path | None = None, *, dtype: Any = np.float16,
          limit: int = SHARD_BYTES) -> None:
  """Writes the published layout.

  Args:
    target: folder to create.
    params: tree of models.encoder with a latent-attention head.
    cfg: of `params`.
    source: folder whose tokenizer and settings (files/carried.py), config.json with all
      its fields among them, are carried over; None: weights and a config.json.
    dtype: of the tensors; the release is float16.
    limit: bytes per shard.

  Raises:
    FileExistsError: target exists.
    ValueError: another kind of model, or a value that overflows `dtype`.
  """
  if cfg.backbone.family != 'mistral' or cfg.pooling.kind != 'latent_attention':
    raise ValueError(
        f'the NV-Embed layout holds Mistral with latent attention, not '
        f'{cfg.backbone.family} with {cfg.pooling.kind}; write sentence-transformers')
  if cfg.backbone.window:
    raise ValueError(
        f'in the NV-Embed layout every token sees the whole text, but the model has a '
        f'window of {cfg.backbone.window}; write sentence-transformers, or train with '
        'config.model.attention=bidirectional and keep_window=False')
  if cfg.lora is not None or cfg.dense:
    raise ValueError('the NV-Embed layout has no place for LoRA or dense layers; '
                     'merge adapters first')
  if cfg.eos_text != EOS_TEXT:
    raise ValueError(
        f'the NV-Embed layout puts {EOS_TEXT!r} behind every text itself, but the '
        f'model has eos_text={cfg.eos_text!r}; write sentence-transformers, or train '
        f'with config.model.eos_text={EOS_TEXT}')
  target = pathlib.Path(target)
  target.mkdir(parents=True)
  shards = plan(cfg, dtype, limit)
  tensors = tables.lazy(params, cfg, table(cfg.backbone).rows)
  for file, shard in shards.items():
    tensor_files.write(target / file, shard,
                       lambda name: _cast(name, tensors[name].read(), dtype))
  if len(shards) > 1:
    (target / tensor_files.INDEX).write_text(index(shards), 'utf-8')
  _carry(source, target, cfg)


def _cast(name: str, x: np.ndarray, dtype) -> np.ndarray:
  with np.errstate(over='ignore'):
    out = x.astype(dtype)
  if not np.isfinite(out).all():
    raise ValueError(f'{name} has values that {np.dtype(dtype)} cannot hold (or that '
                     "are not finite); write with dtype='float32'")
  return out


def _carry(source: pathlib.Path | None, target: pathlib.Path, cfg: ModelConfig):
  """The tokenizer and settings of `source`; config.json where it has none."""
  hf = {} if source is None else checked_json.read(source / 'config.json', absent={})
  if source is not None and hf.get('model_type') == 'nvembed':
    carried.copy_settings(source, target)
  elif source is not None:  # its modules would describe another head
    carried.copy(source, target)
  if hf.get('model_type') != 'nvembed' or config_from_hf(hf).backbone != cfg.backbone:
    hf = config_to_hf(cfg)  # it had none, or was cut since
  kept = carried.without_code(hf)
  if hf.get('auto_map') == _AUTO_MAP:
    kept = {key: kept.get(key, _AUTO_MAP) for key in hf if key in {*kept, 'auto_map'}}
  (target / 'config.json').write_text(_json(kept), 'utf-8')


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
  """A config.json in the published form; inverse of `config_from_hf`."""
  backbone, pooling = cfg.backbone, cfg.pooling
  text = tables.config_to_hf(backbone) | {
      'architectures': ['MistralModel'], 'model_type': 'bidir_mistral',
      'rope_theta': backbone.rope_theta, 'bos_token_id': 1, 'eos_token_id': 2,
      'torch_dtype': 'float32'}
  return {
      'add_eos': True, 'add_pad_token': True, 'architectures': ['NVEmbedModel'],
      'auto_map': _AUTO_MAP,
      'hidden_size': backbone.dim, 'is_mask_instruction': True, 'mask_type': 'b',
      'latent_attention_config': {
          'model_type': 'latent_attention', 'hidden_dim': backbone.dim,
          'latent_dim': backbone.dim, 'num_latents_value': pooling.latents,
          'num_cross_heads': pooling.heads,
          'cross_dim_head': pooling.head_dim or backbone.dim,
          'output_normalize': cfg.normalize},
      'model_type': 'nvembed', 'padding_side': 'right', 'text_config': text,
      'torch_dtype': 'float16',
  }


def _file_name(i: int, count: int) -> str:
  if count == 1:
    return tensor_files.SINGLE
  return f'model-{i + 1:05}-of-{count:05}.safetensors'


def _json(data) -> str:
  return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + '\n'
