"""Model folder reader: backbone, pooling, projections and normalisation.

Reads the sentence-transformers layouts, old and new (`modules.json`), and plain
Hugging Face folders. Of prompts and similarity only the keys are checked here.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any
import warnings

from jaxembed.config import ModelConfig, PoolingConfig, PrependConfig
from jaxembed.convert import (
  head_modules,
  nv_embed,
  static_embedding,
  tables,
  task_adapters,
)
from jaxembed.convert.families import aliases, names
from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.convert.head_modules import Part
from jaxembed.convert.tensor_files import inside, read_json
from jaxembed.files import known_keys
from jaxembed.models import training_free
from jaxembed.pooling import heads

__all__ = ['Found', 'Part', 'after_backbone', 'read']

# Where the Transformer module keeps its settings, in the order in which
# sentence-transformers looks.
_SETTINGS = tuple(f'sentence_{name}_config.json' for name in (
    'bert', 'roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet'))

_LONGEST = 2**20  # tokens of a text


@dataclasses.dataclass(frozen=True)
class Found:
  """The description of a model folder: configuration and where its weights lie."""

  cfg: ModelConfig
  parts: tuple[Part, ...]
  backbone_folder: pathlib.Path
  hf_config: dict
  is_plain: bool = False  # its author has not said how tokens become a vector


def read(folder: pathlib.Path, task: str = '', tower: str = '') -> Found:
  """Describes the model in `folder`; reads no weights.

  task, tower: of adapters of tasks, or of a Router, the one that is meant.

  Raises:
    FileNotFoundError: no config.json.
    UnsupportedModel: a module, pooling mode, backbone or key that is not computed.
    BadCheckpoint: a file that is no JSON, or a path outside the folder.
  """
  if nv_embed.is_nv_embed(folder):  # its modules.json tells half of the story
    return _nv_embed(folder)
  if not (folder / 'modules.json').is_file():
    found = _plain(folder, task)
    return dataclasses.replace(
        found, cfg=dataclasses.replace(found.cfg, normalize=True), is_plain=True)
  first = head_modules.entries(folder, tower)[0]
  place = inside(folder, first['path'])
  is_static = head_modules.kind(first) == static_embedding.TYPE
  found = _static(place) if is_static else _plain(place, task)
  cfg, parts = after_backbone(folder, found.cfg, tower)
  return dataclasses.replace(found, cfg=cfg, parts=(*found.parts, *parts))


def home(folder: pathlib.Path, tower: str = '') -> pathlib.Path:
  """Where the backbone of a model folder lies: itself, or the folder of the module
  that its modules.json names first."""
  if not (folder / 'modules.json').is_file() or nv_embed.is_nv_embed(folder):
    return folder
  return inside(folder, head_modules.entries(folder, tower)[0]['path'])


def after_backbone(folder: pathlib.Path, cfg: ModelConfig, tower: str = ''
                   ) -> tuple[ModelConfig, tuple[Part, ...]]:
  """What the modules.json in `folder` makes of a backbone, wherever its weights lie:
  of its own folder, or of the base model under an adapter.

  Args:
    folder: with modules.json and the folders of its modules.
    cfg: with the backbone and its attention; everything else is the modules'.

  Returns:
    `cfg` with length, case, head and normalisation; the weights of the head.

  Raises:
    UnsupportedModel: a module, an order or a key that is not computed.
  """
  first, *others = head_modules.entries(folder, tower)
  file = folder / 'config_sentence_transformers.json'
  if file.is_file():
    known_keys.check(read_json(file), known_keys.SETTINGS, str(file))
  if cfg.backbone.family != static_embedding.FAMILY:
    prepends = head_modules.kind(first) == training_free.TWIN.type
    cfg = _with_settings(inside(folder, first['path']), cfg, prepends)
  found, parts = head_modules.read(folder, others, cfg)
  file = inside(folder, first['path']) / 'config.json'
  if heads.of_layer(found.pooling) and file.is_file() and (
      read_json(file).get('output_hidden_states') is not True):
    name = head_modules.kind(others[0]).rpartition('.')[2]
    raise UnsupportedModel(
        f'{file}: without output_hidden_states=true sentence-transformers gives {name} '
        'no layers to read; write true, or take the module out of a copy')
  return found, parts


def _with_settings(home: pathlib.Path, cfg: ModelConfig, prepends: bool) -> ModelConfig:
  """`cfg` with what the Transformer module in `home` keeps beside config.json.

  prepends: it is our module of that kind, with a prepended token.
  """
  for name in _SETTINGS:
    file = home / name
    if file.is_file() and (data := read_json(file)):
      break
  else:
    data, file = {}, home / _SETTINGS[0]
  known_keys.check(data, known_keys.SENTENCE_BERT, str(file))
  lower = data.get('do_lower_case')
  if lower not in (None, True, False):
    raise UnsupportedModel(f'{file}: do_lower_case={lower!r:.80} is neither true nor '
                           'false')
  arguments = data.get('processor_kwargs') or data.get('tokenizer_args') or {}
  limit = arguments.get('model_max_length') or data.get('max_seq_length')
  # Its author may go beyond the positions of training where no table of them ends.
  learned = cfg.backbone.position == 'learned'
  most = cfg.backbone.max_positions if learned else _LONGEST
  length = _tokens(limit, most, f'{file}: max_seq_length')
  if length is None and (home / 'tokenizer_config.json').is_file():
    length = max_length(home, cfg.backbone.max_positions)
  return dataclasses.replace(
      cfg, lower_case=bool(lower), max_length=length or cfg.max_length,
      prepend=_prepended(data, cfg, prepends, str(file)),
      eos_text=Fields(data, str(file)).text('append_text', ''))


def _prepended(data: Mapping[str, Any], cfg: ModelConfig, prepends: bool, file: str
               ) -> PrependConfig | None:
  keys = dict(training_free.TWIN.keys)
  if prepends != any(key in data for key in (*keys, 'append_text')):
    raise UnsupportedModel(f'{file}: {", ".join(keys)} belong to the module '
                           f'{training_free.TWIN.type}, and it to them')
  if not prepends:
    return None
  try:
    given: dict[str, Any] = {name: data.get(key) for key, name in keys.items()}
    found = PrependConfig(**given)
  except ValueError as e:
    raise UnsupportedModel(f'{file}: {e}') from None
  layers, rows = cfg.backbone.num_layers, cfg.backbone.vocab_size
  if not found.start <= found.stop <= layers or found.token_id >= rows:
    raise UnsupportedModel(
        f'{file}: the layers {found.start} to {found.stop} and the row '
        f'{found.token_id} of a prepended token lie outside {layers} layers and '
        f'{rows} rows')
  return found


def _plain(folder: pathlib.Path, task: str) -> Found:
  """A backbone's folder, and the pooling that sentence-transformers gives it.

  The mean of the tokens, or the last token where config.json names a causal language
  model (architectures[0] ends in ForCausalLM and is_causal is not false).
  """
  file = folder / 'config.json'
  if not file.is_file():
    raise FileNotFoundError(f'{file} is missing; a model folder needs it')
  hf = read_json(file)
  checked = aliases.as_family(hf)
  if told := aliases.telling(hf) or names.telling(hf):
    warnings.warn(f'{folder}: {told}', stacklevel=2)
    checked = {key: value for key, value in checked.items() if key != 'auto_map'}
  known_keys.check(checked, known_keys.CONFIG, str(file))
  backbone = tables.config_from_hf(hf)
  classes = Fields(hf, str(file)).texts('architectures') or ['']
  last = classes[0].endswith('ForCausalLM') and hf.get('is_causal', True)
  cfg = ModelConfig(
      backbone=backbone, attention=tables.attention_from_hf(hf), normalize=False,
      pooling=PoolingConfig(kind=aliases.pooling(hf) or ('last' if last else 'mean')),
      max_length=max_length(folder, backbone.max_positions))
  table = tables.backbone_table(backbone)
  table = dataclasses.replace(table, ignored=(*table.ignored, *aliases.ignored(hf)))
  part = Part(folder, table, task_adapters.opener(hf, task, str(file)))
  return Found(cfg, (part,), folder, hf)


def _static(folder: pathlib.Path) -> Found:
  cfg, table = static_embedding.read(folder)
  return Found(cfg, (Part(folder, table, static_embedding.tensors),), folder, {})


def _nv_embed(folder: pathlib.Path) -> Found:
  hf = read_json(folder / 'config.json')
  cfg = nv_embed.config_from_hf(hf)
  cfg = dataclasses.replace(
      cfg, max_length=max_length(folder, cfg.backbone.max_positions))
  return Found(cfg, (Part(folder, nv_embed.table(cfg.backbone)),), folder, hf)


def max_length(folder: pathlib.Path, positions: int) -> int:
  """Tokens per text: what the tokenizer says, at most the positions there are."""
  file = folder / 'tokenizer_config.json'
  data: Mapping[str, Any] = read_json(file) if file.is_file() else {}
  limit = data.get('model_max_length') or data.get('max_len')
  return _tokens(limit, positions, f'{file}: model_max_length') or positions


def _tokens(limit, positions: int, where: str) -> int | None:
  """A limit of tokens; 10^30 is how transformers writes that there is none."""
  if limit is None:
    return None
  if type(limit) not in (int, float) or not limit >= 1 or limit != int(limit):
    raise UnsupportedModel(f'{where} is {limit!r:.80}, which is no number of tokens; '
                           'write one, or null for no limit')
  return int(min(limit, positions))
