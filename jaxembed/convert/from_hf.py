"""Loading of Hugging Face and sentence-transformers checkpoints.

Nothing is half-loaded: every name and shape is checked against the table before
the first tensor is read, and all that does not fit is listed in one error.
"""

from collections.abc import Mapping
import dataclasses
import importlib.util
import os
import pathlib
import re
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import tqdm

from jaxembed import sharding
from jaxembed.config import ModelConfig
from jaxembed.convert import head_modules, modules, peft, tables, task_adapters
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.convert.tensor_files import BadCheckpoint, Tensor, is_float
from jaxembed.data import converted_tokenizer
from jaxembed.data.fields import BadFile
from jaxembed.files import place, url
from jaxembed.files.folder import first_line, inside, short
from jaxembed.models import encoder
from jaxembed.types import Params

# What a model needs from the hub; weights as safetensors only.
_HUB_FILES = ('*.json', '*.safetensors', '*.txt', '*.model', '*.jinja', 'README.md')
_SETTINGS = 'config_sentence_transformers.json'
# Of tensors listed in an error; a wrong checkpoint would list thousands.
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model that was read, and the folders that its parts came from."""

  params: Params
  cfg: ModelConfig
  folder: pathlib.Path  # root of the model: prompts, tokenizer, modules.json
  backbone_folder: pathlib.Path  # of config.json and the backbone's weights
  hf_config: dict  # config.json as read
  tokenizer_folder: pathlib.Path
  settings_folder: pathlib.Path | None  # of config_sentence_transformers.json
  base: str  # the weights beneath adapters, as PEFT would name them
  adapter_folder: pathlib.Path | None = None
  is_plain: bool = False  # no modules.json says how tokens become a vector
  tower: str = ''  # of the folder's Router, whose other towers were not read


def load(source: str | os.PathLike, *, dtype: Any = jnp.float32,
         mesh: jax.sharding.Mesh | None = None, progress: bool | None = False,
         weights: bool = True) -> Loaded:
  """Reads a model.

  Args:
    source: folder of a Hugging Face model, a sentence-transformers model or a PEFT
      adapter (its base model is loaded too, the adapter on top), a hub id
      ('org/name', or 'org/name/folder' for one of its folders, such as one of several
      adapters), or 'package:NAME/FOLDER' inside a Python package. '#TASK' behind it
      merges the adapter of a task (jina-embeddings-v3), '#TOWER' opens one tower of a
      Router (query, document).
    dtype: float32, bfloat16 or float16: of the parameters, whatever the file has.
    mesh: lays every parameter out by sharding.RULES, reading each device's part
      only; None: the default device.
    progress: a bar on standard error; None: only on a terminal.
    weights: False opens no file of weights; parameters are jax.ShapeDtypeStruct.

  Returns:
    Parameters as `encoder.init_params(cfg, ...)` shapes them, and where they
    came from. cfg.dtype is `dtype`.

  Raises:
    FileNotFoundError: no such folder, and no such model on the hub (or no net).
    configs.UnsupportedModel: a model that would not be computed exactly.
    BadCheckpoint: files that are broken, and every tensor that is missing, left
      over or mis-shaped, in one message.
  """
  loaded = _load(source, dtype, mesh, progress, weights)
  if loaded.is_plain:
    _tell_plain(loaded)
  return loaded


def _load(source, dtype, mesh, progress, weights: bool) -> Loaded:
  folder, task = locate(source), task_adapters.split(source)[1]
  tower, task = (task, '') if task in head_modules.towers_of(folder) else ('', task)
  home = modules.home(folder, tower)
  if peft.is_adapter(home):
    base = _load(peft.base(home), dtype, mesh, progress, weights)
    return _adapted(folder, home, base, mesh, weights, tower)
  found = modules.read(folder, task, tower)
  if task and task not in task_adapters.tasks(found.hf_config):
    raise UnsupportedModel(f'{folder} has no adapters of tasks, none of {task!r:.80}')
  cfg = dataclasses.replace(found.cfg, dtype=jnp.dtype(dtype).name)
  shapes = tables.flatten(encoder.param_shapes(cfg, dtype))
  params = _abstract(shapes, mesh)
  if weights:
    params = _read(found.parts, folder, shapes, cfg.backbone.stacked_layers, mesh,
                   progress)
  return Loaded(tables.unflatten(params), cfg, folder, found.backbone_folder,
                found.hf_config, _tokenizer(found.backbone_folder),
                None if found.is_plain else folder, base_name(source, folder),
                is_plain=found.is_plain, tower=tower)


def _tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """Where the tokenizer of `folder` lies as tokenizer.json, made if need be."""
  try:
    return converted_tokenizer.folder(folder)
  except (ImportError, UnsupportedModel, BadFile) as e:  # the model may do without
    warnings.warn(f'no tokenizer: {e}', stacklevel=4)
    return folder


def _tell_plain(loaded: Loaded) -> None:
  """One line about what nobody said, and this library takes."""
  unread = loaded.folder / _SETTINGS
  warnings.warn(
      f'{loaded.adapter_folder or loaded.folder} has no modules.json, so nothing says '
      f'how its tokens become a vector: the {loaded.cfg.pooling.kind} of them, as '
      'in sentence-transformers, and scaled to length 1'
      + (f'; its {_SETTINGS} is not read without one, as there'
         if loaded.settings_folder is None and unread.is_file() else ''), stacklevel=3)


def base_of(source: str | os.PathLike) -> str:
  """The base model that an adapter names; of any other source its `base_name`.

  Hub ids are not looked up.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir() or str(source).startswith('package:'):
    path = locate(source)
    home = modules.home(path)
    return peft.base(home) if peft.is_adapter(home) else base_name(source, path)
  return str(source)


def base_name(source: str | os.PathLike, folder: pathlib.Path) -> str:
  """The hub id of a model, or its folder: a name that other libraries open too."""
  path, part = task_adapters.split(source)
  is_hub_id = not str(source).startswith('package:') and not pathlib.Path(
      path).expanduser().is_dir()
  return str(source) if is_hub_id else (
      str(folder.absolute()) + (f'#{part}' if part else ''))


def _read(parts, folder, shapes, layers: int, mesh, progress) -> dict[str, jax.Array]:
  """Every parameter, by path."""
  pieces = {}
  for part in parts:
    pieces |= _match(part, part.open(part.folder), shapes, layers)
  absent = sorted(set(shapes) - set(pieces))
  if absent:
    raise BadCheckpoint(f'{folder}: no table row gives {absent}')
  return _read_all(pieces, shapes, mesh, progress)


def _abstract(shapes, mesh):
  if mesh is None:
    return shapes
  return tables.flatten(sharding.abstract(tables.unflatten(shapes), mesh))


def _adapted(folder: pathlib.Path, home: pathlib.Path, base: Loaded, mesh,
             weights: bool, tower: str) -> Loaded:
  """`base` with the adapter of `home`, and whatever else `folder` brings."""
  if (folder / 'modules.json').is_file():
    base = _with_head(folder, base, mesh, weights, tower)
  params, cfg = peft.read(home, base.params, base.cfg)
  if not weights:
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  if mesh is not None:
    params = (sharding.place if weights else sharding.abstract)(params, mesh)
  own = {field: place for field, file, places in (
      ('tokenizer_folder', 'tokenizer.json', (folder, home)),
      ('settings_folder', _SETTINGS, (folder,)))
         for place in places if (place / file).is_file()}
  return dataclasses.replace(base, params=params, cfg=cfg, adapter_folder=folder,
                             tower=tower, **own)


def _with_head(folder: pathlib.Path, base: Loaded, mesh, weights: bool, tower: str
               ) -> Loaded:
  """`base` with the modules of `folder` after its backbone, instead of its own."""
  cfg, parts = modules.after_backbone(folder, base.cfg, tower)
  dtype = jax.tree.leaves(base.params['backbone'])[0].dtype
  shapes = {path: shape for path, shape in
            tables.flatten(encoder.param_shapes(cfg, dtype)).items()
            if not path.startswith('backbone/')}
  head = _abstract(shapes, mesh)
  if weights:
    head = _read(parts, folder, shapes, cfg.backbone.stacked_layers, mesh, False)
  params = {'backbone': base.params['backbone'], **tables.unflatten(head)}
  return dataclasses.replace(base, params=params, cfg=cfg, is_plain=False)


def locate(source: str | os.PathLike) -> pathlib.Path:
  """The local folder of `source`, fetched if it is a hub id or a URL."""
  if url.of(source):
    return place.fetched(source)
  source, _ = task_adapters.split(source)
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return path
  if str(source).startswith('package:'):
    return _in_package(str(source).removeprefix('package:'))
  if not re.fullmatch(r'\w[\w.-]*(/\w[\w.-]*){0,2}', str(source)):
    raise FileNotFoundError(
        f'{short(str(source))[1:-1]} is no folder here, and no hub id (org/name)')
  import huggingface_hub  # slow to import, and needed for hub ids alone

  org, name, below = [*str(source).split('/'), '', ''][:3]
  try:
    found = pathlib.Path(huggingface_hub.snapshot_download(
        f'{org}/{name}'.rstrip('/'),
        allow_patterns=[*_HUB_FILES, *(f'*/{p}' for p in _HUB_FILES)]))
  except Exception as e:  # the hub raises many kinds, offline others again
    raise FileNotFoundError(
        f'{source} is no folder here, and the Hugging Face hub did not give it '
        f'({type(e).__name__}: {first_line(e)}). Check the name and the '
        'connection, or pass the folder of a local copy.') from e
  if below and not (found / below).is_dir():
    raise FileNotFoundError(f'{org}/{name} has no folder {below!r}')
  return found / below


def _in_package(place: str) -> pathlib.Path:
  """The folder NAME/FOLDER inside the installed Python package NAME."""
  name, _, below = place.partition('/')
  if not name.isidentifier():  # to look for one within another runs the outer one
    raise FileNotFoundError(f'package:{place:.200} names no top-level Python package')
  spec = importlib.util.find_spec(name)
  if not spec or not spec.origin:
    raise FileNotFoundError(
        f'package:{place}: the Python package {name!r} is not installed')
  folder = inside(pathlib.Path(spec.origin).parent, below)
  if not folder.is_dir():
    raise FileNotFoundError(f'package:{place}: no folder {below!r} in it')
  return folder


@dataclasses.dataclass(frozen=True)
class _Piece:
  """One tensor, and which rows of it are one layer of a parameter."""

  tensor: Tensor
  row: tables.Row
  first: int
  last: int


def _match(part: modules.Part, tensors: Mapping[str, Tensor], shapes,
           layers: int) -> dict[str, list[_Piece | None]]:
  """Parameter path -> a piece per layer (None where the layer has no tensor)."""
  table = part.table
  left = {}
  for name, own in tables.base_names(tensors, table).items():
    if own in left:
      raise BadCheckpoint(f'{part.folder} has {own} twice, once as {name}; take one '
                          'out')
    left[own] = tensors[name]
  pieces: dict[str, list[_Piece | None]] = {}
  missing, misshaped = [], []
  for row, layer in tables.expand(table.rows, layers):
    name = row.name.format(l=layer)
    wanted = [tables.part_shape(shapes[path].shape, row, layer) for path in row.paths]
    total = tables.joined_shape(wanted)
    tensor = left.pop(name, None)
    if tensor is None:
      missing.append(name)
    elif not is_float(tensor.dtype):
      misshaped.append(f'{name} is of type {tensor.dtype}, not of a floating-point one')
    elif tensor.shape != total:
      misshaped.append(f'{name} is {list(tensor.shape)}, not {list(total)}')
    else:
      at = 0
      for path, shape in zip(row.paths, wanted):
        piece = _Piece(tensor, row, at, at + shape[0])
        each = 1 if row.expert is None else shapes[path].shape[1]
        slots = pieces.setdefault(
            path, [None] * (1 if layer is None else layers * each))
        slots[(layer or 0) * each + (row.expert or 0)] = piece
        at += shape[0]
  extra = [n for n in left if not any(re.search(p, n) for p in table.ignored)]
  _refuse(part.folder, missing, misshaped, extra)
  return pieces


def _refuse(folder, missing, misshaped, extra) -> None:
  problems = [f'{what} ({len(names)}): {", ".join(sorted(names)[:_LISTED])}'
              + (', ...' if len(names) > _LISTED else '')
              for what, names in (('missing', missing), ('mis-shaped', misshaped),
                                  ('left over', extra)) if names]
  if problems:
    raise BadCheckpoint(
        f'the tensors of {folder} do not fit its config.json. '
        + '; '.join(problems) + '. Nothing was loaded; check that weights and '
        'config.json belong together')


def _read_all(pieces, shapes, mesh, progress) -> dict[str, jax.Array]:
  specs = tables.flatten(sharding.param_specs(tables.unflatten(shapes)))
  total = sum(np.prod(s.shape) * s.dtype.itemsize for s in shapes.values())
  params = {}
  with tqdm.tqdm(total=total, unit='B', unit_scale=True, desc='weights',
                 disable=None if progress is None else not progress) as bar:
    for path, shape in shapes.items():
      params[path] = _place(pieces[path], shape, mesh, specs[path])
      bar.update(params[path].nbytes)
  return params


def _place(pieces, shape, mesh, spec) -> jax.Array:
  """One parameter, on the default device or spread over the mesh."""
  if mesh is None:
    whole = tuple(slice(0, n) for n in shape.shape)
    return jax.device_put(_assemble(pieces, shape, whole))

  def part(index):
    index = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape.shape))
    return _assemble(pieces, shape, index)

  return jax.make_array_from_callback(shape.shape, NamedSharding(mesh, spec), part)


def _assemble(pieces, shape, index: tuple[slice, ...]) -> np.ndarray:
  """The part `index` of a parameter, read from its file layer by layer."""
  out = _aligned(tuple(s.stop - s.start for s in index), shape.dtype)
  if '{l}' not in next(p for p in pieces if p).row.name:
    out[...] = _one(pieces[0], shape.shape, index)
    return out
  if any(p.row.expert is not None for p in pieces if p):  # [L,E,...]: a layer at a time
    count = shape.shape[1]
    for i, layer in enumerate(range(index[0].start, index[0].stop)):
      for j, expert in enumerate(range(index[1].start, index[1].stop)):
        out[i, j] = _one(pieces[layer * count + expert], shape.shape[2:], index[2:])
    return out
  for i, layer in enumerate(range(index[0].start, index[0].stop)):
    piece = pieces[layer]
    # A tensor this layer lacks (an identity norm) is one that changes nothing.
    out[i] = 1 if piece is None else _one(piece, shape.shape[1:], index[1:])
  return out


def _one(piece: _Piece, shape: tuple[int, ...], index: tuple[slice, ...]):
  """The part `index` of one layer's parameter of the given shape."""
  tensor, row = piece.tensor, piece.row
  if not shape:
    return tensor.read()
  if not row.transpose:  # axis 0 of both sides is the same: read these rows only
    first = piece.first + index[0].start
    x = tensor.read(first, piece.first + index[0].stop)
    return x[(slice(None), *index[1:])]
  if len(shape) == 2:  # our columns are the file's rows
    cols = index[1]
    x = tensor.read(piece.first + cols.start, piece.first + cols.stop)
    return x.T[index[0]]
  return tensor.read(piece.first, piece.last).T.reshape(shape)[index]


def _aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
  """Memory that jax takes over on a CPU without copying: 64 bytes aligned."""
  size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
  raw = np.empty(size + 64, np.uint8)
  at = -raw.ctypes.data % 64
  return raw[at:at + size].view(dtype).reshape(shape)
