"""Bundle: a model as one value, and `open`, which reads one from any source.

Training, encoding, averaging, planning and every exporter take and give a `Bundle`.
`open` alone knows what a source may be: a jaxembed workdir, a Hugging Face or
sentence-transformers folder, a PEFT adapter, a hub id, or 'package:NAME/FOLDER'.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from jaxembed import checkpoint, sharding, similarity, texts, workdir
from jaxembed.config import LengthConfig, ModelConfig
from jaxembed.convert import from_hf
from jaxembed.convert.tensor_files import BadCheckpoint, read_json
from jaxembed.data.tokenise import Tokenizer
from jaxembed.files import front_matter, place, url
from jaxembed.models import encoder, length
from jaxembed.types import Params

SETTINGS = 'config_sentence_transformers.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
  """Parameters, configuration, prompts and tokenizer files of one model.

  Attributes:
    params: tree of models.encoder; jax.ShapeDtypeStruct leaves without weights.
    cfg: its ModelConfig, with the rules for texts (max_length, prompt_pooling,
      eos_text).
    prompts: texts to put in front, by name.
    default_prompt_name: the prompt of texts that name none; None: no prompt.
    similarity_fn_name: cosine, dot, euclidean or manhattan.
    truncate_dim: dimensions that its author keeps of a vector; None: all.
    tokenizer_folder: where tokenizer.json lies; None: the model has no tokenizer.
    config_folder: where the backbone's Hugging Face config.json lies, if anywhere.
    folders: whose settings make the model usable elsewhere; later ones win.
    source: what was opened, as it was named.
    base: where the weights beneath LoRA adapters can be had, as PEFT names a base
      model; '': nowhere, or unknown.
    step: training steps behind the parameters; None outside workdirs.
    original: the folder whose model this is, unchanged; None after training.
    card: what the card of the model beneath says (files.front_matter.KEYS), and under
      'notes' sentences about how this one was made of it.
  """

  params: Params
  cfg: ModelConfig
  prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  default_prompt_name: str | None = None
  similarity_fn_name: str = 'cosine'
  truncate_dim: int | None = None
  tokenizer_folder: pathlib.Path | None = None
  config_folder: pathlib.Path | None = None
  folders: tuple[pathlib.Path, ...] = ()
  source: str = ''
  base: str = ''
  step: int | None = None
  original: pathlib.Path | None = None
  card: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    here = f'{self.source or "the model"}: '
    try:
      similarity.checked(self.similarity_fn_name)
    except ValueError as e:
      raise ValueError(f'{here}{e}') from e
    if self.truncate_dim is not None and self.truncate_dim < 1:
      raise ValueError(f'{here}truncate_dim is {self.truncate_dim}; keep 1 or more '
                       'dimensions, or None (null) for all of them')
    name = self.default_prompt_name
    # sentence-transformers knows these two in every model, empty where not given.
    if name is not None and name not in (*self.prompts, 'query', 'document'):
      raise ValueError(f'{here}the default prompt {name!r} is unknown; its prompts are '
                       f'{sorted(self.prompts) or "none"}')

  @property
  def model(self) -> ModelConfig:
    """The ModelConfig, `cfg`, by the name that training has for it."""
    return self.cfg

  @property
  def settings(self) -> dict[str, Any]:
    """What config_sentence_transformers.json says of this model."""
    more = {} if self.truncate_dim is None else {'truncate_dim': self.truncate_dim}
    return {'prompts': dict(self.prompts),
            'default_prompt_name': self.default_prompt_name,
            'similarity_fn_name': self.similarity_fn_name, **more}

  def with_prompts(self, prompts: Mapping[str, str], default: str | None) -> 'Bundle':
    """This model with these prompts in the place of its own of the same names.

    default: in the place of default_prompt_name; None: that stays.
    """
    for name, text in prompts.items():
      texts.check_text(text, f'the prompt {name!r}')
    return dataclasses.replace(
        self, prompts={**self.prompts, **prompts},
        default_prompt_name=default or self.default_prompt_name)

  def with_length(self, wanted: LengthConfig, mesh: jax.sharding.Mesh | None = None
                  ) -> 'Bundle':
    """This model with a length method; parameters that it brings lie on `mesh`.

    Raises:
      ValueError: the model cannot take it.
    """
    cfg = length.configure(self.cfg, wanted)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
      params = length.parameters(self.params, self.cfg, cfg, jax.random.key(0))
    if mesh is not None:
      params = sharding.place(params, mesh)
    return dataclasses.replace(self, params=params, cfg=cfg, original=None)

  def load_tokenizer(self) -> Tokenizer:
    """The tokenizer, with the model's rules for prompts and the end of a text.

    Raises:
      FileNotFoundError: the model has none.
      ValueError: settings that mean nothing, or that are not computed.
    """
    if self.tokenizer_folder is None:
      raise FileNotFoundError(f'{self.source or "the model"} has no tokenizer')
    return Tokenizer.for_model(self.tokenizer_folder, self.cfg)


def open(source: str | os.PathLike, *, mesh: jax.sharding.Mesh | None = None,
         dtype: str | None = None, weights: bool = True, step: checkpoint.Step = None
         ) -> Bundle:
  """Opens a model, whatever it is stored as.

  Args:
    source: a jaxembed workdir; the folder of a sentence-transformers model, a Hugging
      Face model or a PEFT adapter; the gs:// or s3:// URL of one of these; a hub id
      ('org/name'); or 'package:NAME/FOLDER'.
    mesh: parameters are laid out on it by sharding.RULES; None: the default device.
    dtype: float32, bfloat16 or float16, of parameters and activations. None keeps a
      workdir's own, and means float32 elsewhere.
    weights: False reads configuration and tokenizer alone; `params` are then
      jax.ShapeDtypeStruct, and no file of weights is opened.
    step: of a workdir, the checkpoint to read; 'best': the one that scored best; None:
      the newest.

  Raises:
    FileNotFoundError: none of these; a workdir without a checkpoint.
    UnsupportedModel: a model that would not be computed exactly.
    BadCheckpoint: broken files, or tensors that do not fit the configuration.
    ValueError: settings that mean nothing.
  """
  named, source = source, _here(source, step, weights)
  if workdir.is_workdir(source):
    found = _workdir(pathlib.Path(source).absolute(), mesh, dtype, weights,
                     None if source is not named and step == 'best' else step)
    return dataclasses.replace(found, source=str(named)) if url.of(named) else found
  if step is not None:
    raise ValueError(f'step={step} names a checkpoint of a workdir, and {source} is '
                     'none; leave it out')
  loaded = from_hf.load(source, dtype=dtype or 'float32', mesh=mesh, weights=weights)
  return Bundle(
      params=loaded.params, cfg=loaded.cfg, source=str(named), base=loaded.base,
      original=None if loaded.tower else loaded.adapter_folder or loaded.folder,
      tokenizer_folder=loaded.tokenizer_folder, config_folder=loaded.backbone_folder,
      card=_card(loaded),
      folders=tuple(dict.fromkeys(filter(None, (
          loaded.folder, loaded.backbone_folder, loaded.adapter_folder)))),
      **(read_settings(loaded.settings_folder) if loaded.settings_folder else {}))


def _card(loaded: from_hf.Loaded) -> dict[str, Any]:
  """What the folder's card says, and the hub id that the model is known by."""
  found = [front_matter.read(f) for f in (loaded.folder, loaded.adapter_folder) if f]
  known = {} if os.path.isabs(loaded.base or '/') else {'base_model': loaded.base}
  return {key: value for head in (*found, known) for key, value in head.items()}


def _here(source: str | os.PathLike, step: checkpoint.Step, weights: bool
          ) -> str | os.PathLike:
  """`source`, copied to this machine if it is a URL."""
  where = url.of(source)
  if where is None:
    return source
  if workdir.is_workdir(where):
    return workdir.fetched(where, step, weights=weights)
  return place.fetched(where)


def locate(source: str | os.PathLike) -> pathlib.Path:
  """The folder of `source`, fetched if it is a hub id or a URL.

  Raises:
    FileNotFoundError: there is none.
  """
  source = _here(source, None, False)
  if workdir.is_workdir(source):
    return pathlib.Path(source)
  return from_hf.locate(source)


def _workdir(path: pathlib.Path, mesh, dtype, weights, step) -> Bundle:
  cfg, folder = workdir.load_model_config(path), path / 'model'
  origin = workdir.load_origin(path)
  if weights:
    params, _, _, step = workdir.load(path, step)
  else:
    params = encoder.param_shapes(cfg, origin.get('dtype', 'float32'))
  if dtype is not None:
    cfg = dataclasses.replace(cfg, dtype=jnp.dtype(dtype).name)
    params = _cast(params, dtype)
  if mesh is not None:
    params = (sharding.place if weights else sharding.abstract)(params, mesh)
  return Bundle(
      params=params, cfg=cfg, source=str(path), step=step,
      base=_base(path, cfg, origin), card=_kept_card(origin),
      tokenizer_folder=folder if (folder / 'tokenizer.json').is_file() else None,
      config_folder=folder, folders=(folder,), **read_settings(folder))


def _kept_card(origin: dict[str, Any]) -> dict[str, Any]:
  card = origin.get('card')
  found = front_matter.only_texts(card)
  notes = card.get('notes', ()) if isinstance(card, dict) else ()
  return found | ({'notes': [n for n in notes if isinstance(n, str)]} if notes else {})


def _base(path: pathlib.Path, cfg: ModelConfig, origin: dict[str, Any]) -> str:
  """Where the weights beneath a run's adapters can be had.

  Training leaves them as they were; those of a run without adapters are its own.
  """
  if cfg.lora is None:
    return ''
  if 'base' in origin:
    return origin['base']
  file = path / 'config.json'  # a run from before origins were kept
  source = read_json(file).get('model', {}).get('source') if file.is_file() else ''
  try:
    if source and workdir.is_workdir(source):
      return open(source, weights=False).base
    return from_hf.base_of(source) if source else ''
  except (OSError, ValueError):
    return ''


def _cast(params: Params, dtype) -> Params:
  def change(x):
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, dtype)
    return x.astype(dtype)

  return jax.tree.map(change, params)


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
  """The Bundle fields that config_sentence_transformers.json in `folder` holds.

  Raises:
    BadCheckpoint: no JSON, or values of another type than they must have.
  """
  file = folder / SETTINGS
  if not file.is_file():
    return {}
  data, fields = read_json(file), {}
  for key, kind, means in (
      ('prompts', dict, 'texts by name'), ('default_prompt_name', str, 'a name'),
      ('similarity_fn_name', str, f'one of {", ".join(similarity.NAMES)}'),
      ('truncate_dim', int, 'a number of dimensions')):
    value = data.get(key)
    if value is None:
      continue
    if not isinstance(value, kind) or isinstance(value, bool):
      raise BadCheckpoint(f'{file}: {key} is {value!r:.60}; it must be {means}')
    fields[key] = value
  if 'prompts' in fields:  # null is an empty prompt, as in sentence-transformers
    fields['prompts'] = {name: '' if text is None else text
                         for name, text in fields['prompts'].items()}
  for name, text in fields.get('prompts', {}).items():
    if not isinstance(text, str):
      raise BadCheckpoint(f'{file}: the prompt {name!r} is {text!r:.60}, not a text')
  return fields


def save_model(path: str | os.PathLike, model: Bundle, append_token: str = '') -> None:
  """Writes the workdir's model folder: all of `model` but its parameters.

  append_token: what the tokenizer there is to put behind every text.
  Process 0 writes; all return once it has.
  """
  dtype = str(model.params['backbone']['embed']['token'].dtype)
  workdir.save_model(
      pathlib.Path(path), model.cfg, folders=model.folders,
      tokenizer=model.tokenizer_folder, settings=model.settings,
      origin={'source': model.source, 'base': model.base, 'dtype': dtype,
              **({'card': dict(model.card)} if model.card else {})},
      append_token=append_token)


def save(path: str | os.PathLike, model: Bundle) -> None:
  """Writes `model`, parameters and all, as a new workdir of one checkpoint.

  It is opened, evaluated, exported and trained from like a run's. One process writes.

  Raises:
    FileExistsError: `path` is there; nothing is touched.
    FloatingPointError: a parameter is not finite.
  """
  path = pathlib.Path(path).absolute()
  if os.path.lexists(path):
    raise FileExistsError(f'{path} exists; choose another folder, or remove it')
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    checkpoint.save_params(partial / 'checkpoints', model.step or 0, model.params)
    save_model(partial, model)
    partial.rename(path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
