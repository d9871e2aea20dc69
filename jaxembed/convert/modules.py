"""What a model folder is made of: backbone, pooling, projections, normalisation.

Reads the sentence-transformers layouts, old and new (`modules.json`), and plain
Hugging Face folders. Prompts are not read here.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from jaxembed.config import DenseConfig, ModelConfig, PoolingConfig
from jaxembed.convert import nv_embed, tables
from jaxembed.convert.configs import UnsupportedModel
from jaxembed.convert.tensor_files import inside, read_json

_POOLING_KEYS = {
    'pooling_mode_cls_token': 'cls', 'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_max_tokens': 'max', 'pooling_mode_lasttoken': 'last',
    'pooling_mode_weightedmean_tokens': 'weighted_mean',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
}
_POOLING_MODES = {'cls': 'cls', 'mean': 'mean', 'max': 'max', 'lasttoken': 'last',
                  'weightedmean': 'weighted_mean'}
_DENSE_ACTIVATIONS = {'Identity': 'identity', 'Tanh': 'tanh'}
# tokenizer_config.json says 10^30 when it knows no limit.
_NO_LIMIT = 1_000_000


@dataclasses.dataclass(frozen=True)
class Part:
  """Some of the parameters: a folder of weights and its table."""

  folder: pathlib.Path
  table: tables.Table


@dataclasses.dataclass(frozen=True)
class Found:
  cfg: ModelConfig
  parts: tuple[Part, ...]
  backbone_folder: pathlib.Path
  hf_config: dict


def read(folder: pathlib.Path) -> Found:
  """Describes the model in `folder`; reads no weights.

  Raises:
    FileNotFoundError: no config.json.
    UnsupportedModel: a module, pooling mode or backbone that is not computed.
    BadCheckpoint: a file that is no JSON, or a path outside the folder.
  """
  if nv_embed.is_nv_embed(folder):  # its modules.json tells half of the story
    return _nv_embed(folder)
  if not (folder / 'modules.json').is_file():
    return _plain(folder)
  entries = read_json(folder / 'modules.json', list)
  home = inside(folder, entries[0]['path']) if entries else folder
  if not entries or _class(entries[0]) != 'Transformer':
    raise UnsupportedModel(f'{folder}/modules.json does not begin with a Transformer')
  found = _plain(home)
  fields: dict[str, Any] = {'normalize': False, 'dense': ()}
  parts = list(found.parts)
  for entry in entries[1:]:
    if _class(entry) not in _MODULES:
      raise UnsupportedModel(
          f'{folder}/modules.json: module {entry["type"]!r} is not supported; '
          f'known: Transformer, {", ".join(_MODULES)}')
    part = _MODULES[_class(entry)](inside(folder, entry['path']), fields)
    parts += [part] if part else []
  if 'pooling' not in fields:
    raise UnsupportedModel(f'{folder}/modules.json has no pooling module')
  cfg = dataclasses.replace(found.cfg, **fields)
  return dataclasses.replace(found, cfg=cfg, parts=tuple(parts))


def _plain(folder: pathlib.Path) -> Found:
  """A Hugging Face folder: mean pooling, or the last token when causal."""
  file = folder / 'config.json'
  if not file.is_file():
    raise FileNotFoundError(f'{file} is missing; a model folder needs it')
  hf = read_json(file)
  backbone = tables.config_from_hf(hf)
  attention = tables.attention_from_hf(hf)
  pooling = PoolingConfig(kind='last' if attention == 'causal' else 'mean')
  cfg = ModelConfig(backbone=backbone, pooling=pooling, attention=attention,
                    max_length=max_length(folder, backbone.max_positions))
  return Found(cfg, (Part(folder, tables.backbone_table(backbone)),), folder, hf)


def _nv_embed(folder: pathlib.Path) -> Found:
  hf = read_json(folder / 'config.json')
  cfg = nv_embed.config_from_hf(hf)
  cfg = dataclasses.replace(
      cfg, max_length=max_length(folder, cfg.backbone.max_positions))
  return Found(cfg, (Part(folder, nv_embed.table(cfg.backbone)),), folder, hf)


def max_length(folder: pathlib.Path, positions: int) -> int:
  """Tokens per text: what sentence-transformers, else the tokenizer, says."""
  for file in sorted(folder.glob('sentence_*_config.json')):
    if limit := read_json(file).get('max_seq_length'):
      return min(limit, positions)
  file = folder / 'tokenizer_config.json'
  limit = read_json(file).get('model_max_length') if file.is_file() else None
  return int(limit) if limit and limit < min(positions, _NO_LIMIT) else positions


# --- Modules: each adds to the fields of ModelConfig, some bring weights ------


def _class(entry: Mapping[str, Any]) -> str:
  return entry['type'].rpartition('.')[2]


def _pooling(folder: pathlib.Path, fields: dict) -> None:
  data = read_json(folder / 'config.json')
  modes = data.get('pooling_mode')
  if modes is None:
    modes = [mode for key, mode in _POOLING_KEYS.items() if data.get(key)]
  else:
    modes = [_POOLING_MODES.get(m, m)
             for m in ([modes] if isinstance(modes, str) else modes)]
  known = set(_POOLING_MODES.values())
  if len(modes) != 1 or modes[0] not in known:
    raise UnsupportedModel(f'{folder}: pooling {" + ".join(modes) or "none"} is not '
                           f'supported; known, one at a time: '
                           f'{", ".join(sorted(known))}')
  fields['pooling'] = PoolingConfig(kind=modes[0])
  _prompts(data, fields)


def _latent_attention(folder: pathlib.Path, fields: dict) -> Part:
  data = read_json(folder / 'config.json')
  fields['pooling'] = PoolingConfig(
      kind='latent_attention', latents=data['num_latents'], heads=data['heads'],
      head_dim=data['head_dim'], ff_mult=data['ff_mult'])
  _prompts(data, fields)
  return Part(folder, tables.LATENT_ATTENTION)


def _prompts(data: Mapping[str, Any], fields: dict) -> None:
  if data.get('include_prompt') is False:
    fields['prompt_pooling'] = 'exclude'


def _normalize(folder: pathlib.Path, fields: dict) -> None:
  fields['normalize'] = True


def _dense(folder: pathlib.Path, fields: dict) -> Part:
  data = read_json(folder / 'config.json')
  name = data.get('activation_function', 'torch.nn.modules.activation.Tanh')
  activation = _DENSE_ACTIVATIONS.get(name.rpartition('.')[2])
  if activation is None:
    raise UnsupportedModel(f'{folder}: activation_function {name!r} is not '
                           'supported; known: Identity, Tanh')
  layer = DenseConfig(features=data['out_features'], bias=data.get('bias', True),
                      activation=activation)
  index = len(fields['dense'])
  fields['dense'] = (*fields['dense'], layer)
  return Part(folder, tables.dense_table(index, layer))


_MODULES = {'Pooling': _pooling, 'LatentAttentionPooling': _latent_attention,
            'Dense': _dense, 'Normalize': _normalize}
