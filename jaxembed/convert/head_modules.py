"""Pooling, Dense and Normalize modules of a sentence-transformers folder.

Pooling comes first; Dense and Normalize follow in any order and number, and the
order is kept: ModelConfig.dense says of each layer whether its input is normalised.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from jaxembed.config import DenseConfig, ModelConfig, PoolingConfig
from jaxembed.convert import static_embedding, tables, task_adapters, towers
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.tensor_files import Tensor, inside, open_folder, read_json
from jaxembed.files import known_keys
from jaxembed.files.folder import short
from jaxembed.models import training_free
from jaxembed.pooling import heads, weighted_layers
from jaxembed.pooling.head import Head, Mode, Twin


def library_modes() -> dict[str, Mode]:
  """The poolings of sentence-transformers, in the order in which several stand side
  by side when the older keys name them."""
  return {kind: head.mode for kind, head in heads.HEADS.items() if head.mode}


# Activations of dense layers, as torch spells their classes.
_IN_TORCH = 'torch.nn.modules.activation.'
ACTIVATIONS = {
    'identity': 'torch.nn.modules.linear.Identity', 'tanh': _IN_TORCH + 'Tanh',
    'relu': _IN_TORCH + 'ReLU', 'gelu': _IN_TORCH + 'GELU', 'silu': _IN_TORCH + 'SiLU',
    'sigmoid': _IN_TORCH + 'Sigmoid', 'leaky_relu': _IN_TORCH + 'LeakyReLU',
    'elu': _IN_TORCH + 'ELU', 'selu': _IN_TORCH + 'SELU', 'mish': _IN_TORCH + 'Mish',
    'softplus': _IN_TORCH + 'Softplus', 'softsign': _IN_TORCH + 'Softsign',
    'celu': _IN_TORCH + 'CELU', 'relu6': _IN_TORCH + 'ReLU6',
    'rrelu': _IN_TORCH + 'RReLU', 'hard_sigmoid': _IN_TORCH + 'Hardsigmoid',
    'hard_silu': _IN_TORCH + 'Hardswish', 'hard_tanh': _IN_TORCH + 'Hardtanh',
    'log_sigmoid': _IN_TORCH + 'LogSigmoid', 'tanh_shrink': _IN_TORCH + 'Tanhshrink',
    'soft_shrink': _IN_TORCH + 'Softshrink', 'hard_shrink': _IN_TORCH + 'Hardshrink',
    'softmax': _IN_TORCH + 'Softmax', 'softmin': _IN_TORCH + 'Softmin',
    'log_softmax': _IN_TORCH + 'LogSoftmax'}
_LIBRARY = 'sentence_transformers.'


@dataclasses.dataclass(frozen=True)
class Part:
  """Some of the parameters: a folder of weights, its table, and how it is opened."""

  folder: pathlib.Path
  table: tables.Table
  open: Callable[[pathlib.Path], Mapping[str, Tensor]] = open_folder


def entries(folder: pathlib.Path, tower: str = '') -> list[dict[str, Any]]:
  """The modules that modules.json lists, one of FIRST before the others.

  tower: of a Router, whose modules stand in its place; '' where there is none.

  Raises:
    UnsupportedModel: it does not begin with one of them, or an entry is of a class
      that is not computed: another module, or code of the folder's own.
  """
  file = folder / 'modules.json'
  found = _listed(file)
  if found and towers.is_router(found[0]):
    found = [*towers.modules(folder, found[0], tower), *found[1:]]
  for i, entry in enumerate(found):
    if i == 0 and _has_task_adapters(folder, entry):
      found[0] = entry = {'path': entry['path'], 'type': _LIBRARY + 'Transformer'}
    known_keys.check(entry, known_keys.MODULES_ENTRY, f'{file}: module {i}')
  names = [entry['name'] for entry in found if 'name' in entry]
  if twice := [n for n in names if names.count(n) > 1]:
    raise UnsupportedModel(f'{file}: two modules have the name {short(twice[0])}, of '
                           'which sentence-transformers keeps one; number them')
  kinds = [kind(entry) for entry in found]
  if not found or kinds[0] not in FIRST:
    raise UnsupportedModel(f'{file} does not begin with a Transformer or '
                           f'{static_embedding.TYPE}{_instead(found)}')
  readers = _readers()
  for entry, name in zip(found[1:], kinds[1:]):
    if name not in readers:
      own = '' if entry['type'].startswith(_LIBRARY) else (
          ' (code of a folder is never run)')
      raise UnsupportedModel(
          f'{file}: module {short(entry["type"])} is not supported{own}; known: '
          f'Transformer, {", ".join(readers)}')
  pooling = sum(name == 'Pooling' or name not in _OF_THE_LIBRARY for name in kinds[1:])
  if pooling != (kinds[0] != static_embedding.TYPE):
    wanted = ('exactly one has to pool' if kinds[0] != static_embedding.TYPE else
              f'{static_embedding.TYPE} has pooled already')
    raise UnsupportedModel(f'{file}: modules {short(", ".join(kinds))} are not '
                           f'supported; {wanted}')
  return found


def towers_of(folder: pathlib.Path) -> tuple[str, ...]:
  """The towers of a folder whose first module is a Router; () of others."""
  file = folder / 'modules.json'
  found = _listed(file) if file.is_file() else []
  return towers.names(folder, found[0]) if found and towers.is_router(found[0]) else ()


def _listed(file: pathlib.Path) -> list[dict[str, Any]]:
  found = read_json(file, list)
  for i, entry in enumerate(found):
    if not (isinstance(entry, dict) and isinstance(entry.get('type'), str)
            and isinstance(entry.get('path'), str)):
      raise UnsupportedModel(f'{file}: module {i} is {short(entry)}, and needs a type '
                             'and a path')
  return found


def _has_task_adapters(folder: pathlib.Path, entry: Mapping[str, Any]) -> bool:
  """Whether it is the Transformer of jina-embeddings-v3, whose code picks adapters."""
  file = inside(folder, entry['path']) / 'config.json'
  return (entry['type'] == task_adapters.MODULE and file.is_file()
          and bool(task_adapters.tasks(read_json(file), str(file))))


def _instead(found: Sequence[Mapping[str, Any]]) -> str:
  """What modules.json begins with."""
  return f', but with {short(found[0]["type"])}, which is not computed' if found else ''


def kind(entry: Mapping[str, Any]) -> str:
  """The class of a module of the library itself; of others, all of their name."""
  own = entry['type'].startswith(_LIBRARY)
  return entry['type'].rpartition('.')[2] if own else entry['type']


def read(folder: pathlib.Path, after: Sequence[Mapping[str, Any]], cfg: ModelConfig
         ) -> tuple[ModelConfig, tuple[Part, ...]]:
  """`cfg` with the head that the modules `after` the Transformer describe.

  Args:
    folder: the root, to which their paths are relative.
    after: from `entries`.
    cfg: with the backbone; its own head is replaced.

  Returns:
    The configuration, and the weights that the modules bring.

  Raises:
    UnsupportedModel: a key, a value or an order that would not be computed exactly.
  """
  cfg = dataclasses.replace(cfg, dense=(), normalize=False, pooling=PoolingConfig())
  parts, readers = [], _readers()
  pooled = cfg.backbone.family == static_embedding.FAMILY
  for entry in after:
    name, place = kind(entry), inside(folder, entry['path'])
    if not pooled and name in ('Dense', 'LayerNorm', 'Normalize'):
      raise UnsupportedModel(f'{folder}/modules.json: {name} stands before Pooling; '
                             'only modules of the pooled vector are computed')
    if name == WEIGHTED and pooled:
      raise UnsupportedModel(f'{folder}/modules.json: {name} stands behind Pooling, '
                             'which has pooled the layers already')
    pooled = name != WEIGHTED
    cfg, part = readers[name](place, cfg)
    parts += [part] if part else []
  return cfg, tuple(parts)


def _config(folder: pathlib.Path, table: Mapping[str, Any]) -> dict[str, Any]:
  file = folder / 'config.json'
  data = read_json(file) if file.is_file() else {}
  known_keys.check(data, table, str(file))
  return data


def _pooling(folder: pathlib.Path, cfg: ModelConfig) -> tuple[ModelConfig, None]:
  data = _config(folder, known_keys.POOLING)
  fields = Fields(data, f'{folder}/config.json')
  named = data.get('pooling_mode')
  if named is None:  # the older keys; none of them is true: the mean
    modes = [ours for ours, known in library_modes().items()
             if fields.flag(known.key)]
    modes = modes or ['mean']
  else:
    by_name = {known.name: ours for ours, known in library_modes().items()}
    listed = [named] if isinstance(named, str) else named
    modes = ([by_name.get(str(m), '') for m in listed] if isinstance(listed, list)
             else [])
    if not modes or '' in modes:
      raise UnsupportedModel(f'{folder}/config.json: pooling_mode {named!r:.80} is not '
                             f'supported; known: {", ".join(by_name)}')
  widths = {key: data[key] for key in ('word_embedding_dimension',
                                       'embedding_dimension') if key in data}
  if not widths:  # every pooling has one; a folder without is cut short
    raise UnsupportedModel(f'{folder}/config.json lacks word_embedding_dimension')
  for key, width in widths.items():
    if type(width) is not int or width != cfg.backbone.width:
      raise UnsupportedModel(f'{folder}/config.json: {key}={short(width)} is not the '
                             f"backbone's width {cfg.backbone.width}")
  pooling = PoolingConfig(kind='+'.join(modes))
  if cfg.pooling.kind == weighted_layers.KIND:
    if pooling.kind not in weighted_layers.POOLS:
      raise UnsupportedModel(
          f'{fields.file}: the mode {pooling.kind} behind {WEIGHTED} is not '
          f'supported; known there: {", ".join(weighted_layers.POOLS)}')
    pooling = dataclasses.replace(cfg.pooling, options=(
        *cfg.pooling.options, ('pool', pooling.kind)))
  return _with_prompts(dataclasses.replace(cfg, pooling=pooling), fields), None


def _twin(head: Head, twin: Twin):
  """The reader of the torch module that an export of `head` brings."""
  def read_module(folder: pathlib.Path, cfg: ModelConfig):
    keys = dict.fromkeys(('embedding_dimension', 'include_prompt', 'num_layers',
                          *(key for key, _ in twin.keys)), known_keys.APPLIED)
    fields = Fields(_config(folder, keys), f'{folder}/config.json')
    given = {name: _typed(fields, key, head.options.get(
        name, getattr(cfg.pooling, name, None))) for key, name in twin.keys}
    pooling = PoolingConfig(
        kind=head.kind, options=tuple(
            (name, given.pop(name)) for name in head.options if name in given), **given)
    table = tables.head_table(head, pooling)
    return (_with_prompts(dataclasses.replace(cfg, pooling=pooling), fields),
            Part(folder, table) if table.rows else None)

  return read_module


def _typed(fields: Fields, key: str, default: object) -> Any:
  """The value of `key`, of the type that its default has."""
  if isinstance(default, bool):
    return fields.flag(key, default)
  if isinstance(default, int):
    return fields.size(key)
  if isinstance(default, float):
    return float(fields.number(key, default))
  return fields.text(key)


def _with_prompts(cfg: ModelConfig, fields: Fields) -> ModelConfig:
  out = not fields.flag('include_prompt', True)
  return dataclasses.replace(cfg, prompt_pooling='exclude' if out else 'include')


def _normalize(folder: pathlib.Path, cfg: ModelConfig) -> tuple[ModelConfig, None]:
  _config(folder, known_keys.NORMALIZE)
  return dataclasses.replace(cfg, normalize=True), None


def _dropout(folder: pathlib.Path, cfg: ModelConfig) -> tuple[ModelConfig, None]:
  _config(folder, known_keys.DROPOUT)  # the identity outside training
  return cfg, None


def _dense(folder: pathlib.Path, cfg: ModelConfig) -> tuple[ModelConfig, Part]:
  data = _config(folder, known_keys.DENSE)
  fields = Fields(data, f'{folder}/config.json')
  spelling = fields.text('activation_function', ACTIVATIONS['tanh'])
  by_spelling = {spelling: ours for ours, spelling in ACTIVATIONS.items()}
  by_spelling |= {'torch.nn.' + spelling.rpartition('.')[2]: ours
                  for spelling, ours in by_spelling.items()}
  if spelling not in by_spelling:
    raise UnsupportedModel(
        f'{folder}/config.json: activation_function {spelling!r:.80} is not supported; '
        f'known: {", ".join(ACTIVATIONS.values())}')
  width = cfg.embedding_dim
  if fields.size('in_features') != width:
    raise UnsupportedModel(f'{fields.file}: in_features={data["in_features"]}, but the '
                           f'vectors that come in have {width} dimensions')
  layer = DenseConfig(
      features=fields.size('out_features'), bias=fields.flag('bias', True),
      activation=by_spelling[spelling], residual=fields.flag('use_residual', False),
      normalize_input=cfg.normalize)
  part = Part(folder, tables.dense_table(len(cfg.dense), layer, width))
  return dataclasses.replace(cfg, dense=(*cfg.dense, layer), normalize=False), part


def _weighted_layers(folder: pathlib.Path, cfg: ModelConfig
                     ) -> tuple[ModelConfig, Part]:
  """The weights of the layers; how each is pooled, the Pooling behind says."""
  fields = Fields(_config(folder, known_keys.WEIGHTED_LAYERS), f'{folder}/config.json')
  start, layers = fields.whole('layer_start', 4), cfg.backbone.num_layers
  count = fields.whole('num_hidden_layers', 12)
  if count != layers or not 1 <= start <= layers:
    raise UnsupportedModel(
        f'{fields.file}: layer_start={start} and num_hidden_layers={count} are not '
        f'supported for a model of {layers} layers (the embeddings, layer 0, do not '
        'count here)')
  pooling = PoolingConfig(kind=weighted_layers.KIND, options=(('start', start),))
  table = tables.head_table(heads.HEADS[weighted_layers.KIND], pooling)
  return dataclasses.replace(cfg, pooling=pooling), Part(folder, table)


def _layer_norm(folder: pathlib.Path, cfg: ModelConfig) -> tuple[ModelConfig, Part]:
  fields = Fields(_config(folder, known_keys.LAYER_NORM), f'{folder}/config.json')
  width = cfg.embedding_dim
  if fields.size('dimension') != width:
    raise UnsupportedModel(f'{fields.file}: dimension={fields.size("dimension")}, but '
                           f'the vectors that come in have {width}')
  step = DenseConfig(kind='layer_norm', features=width, normalize_input=cfg.normalize)
  part = Part(folder, tables.dense_table(len(cfg.dense), step, width))
  return dataclasses.replace(cfg, dense=(*cfg.dense, step), normalize=False), part


WEIGHTED = 'WeightedLayerPooling'
FIRST = ('Transformer', static_embedding.TYPE, training_free.TWIN.type)
_OF_THE_LIBRARY = {'Pooling': _pooling, 'Dense': _dense, 'Normalize': _normalize,
                   'Dropout': _dropout, 'LayerNorm': _layer_norm,
                   WEIGHTED: _weighted_layers}


def _readers() -> dict[str, Callable]:
  """The reader of each module, by what `kind` says."""
  return {head.twin.type: _twin(head, head.twin) for head in heads.HEADS.values()
          if head.twin} | _OF_THE_LIBRARY
