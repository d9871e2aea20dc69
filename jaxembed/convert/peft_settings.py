"""adapter_config.json of PEFT: rank and scale of each module, and what else it asks."""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
from typing import Any

from jaxembed.config import LoraConfig
from jaxembed.convert.fields import Fields
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.files import checked_json, known_keys
from jaxembed.files.folder import short
from jaxembed.files.known_keys import UnsupportedModel

_MOST_RANKS = 2**14
# Modules that PEFT adds to the list for tasks with a head, whether there is one or not.
_HEADS = ('classifier', 'score', 'qa_outputs')
# Of a pattern: longer ones, and ones that repeat a group or repeat often, can take
# longer to match than anybody waits.
_LONGEST, _MOST_REPEATS = 200, 2


@dataclasses.dataclass(frozen=True)
class Settings:
  """What adapter_config.json says of the numbers.

  Attributes:
    ranks, alphas: pattern of module names -> rank or alpha in the place of the usual.
    dora: rows of a matrix are scaled to a learned length (arXiv 2402.09353).
    tokens: end of an embedding's name -> its rows that have values of their own.
    saved: ends of the names of modules that the file holds whole.
    targets: ends of the names of modules that have an update each; none where a
      pattern or a choice of layers says which.
  """

  rank: int
  alpha: float
  dropout: float
  rslora: bool
  dora: bool
  ranks: Mapping[str, int]
  alphas: Mapping[str, float]
  tokens: Mapping[str, tuple[int, ...]]
  saved: tuple[str, ...]
  targets: tuple[str, ...]

  @property
  def plain(self) -> bool:
    """Whether one LoraConfig says it all."""
    return not (self.dora or self.ranks or self.alphas or self.tokens)

  @property
  def lora(self) -> LoraConfig:
    """The usual rank and scale; which modules have them is told by the tensors."""
    return LoraConfig(rank=self.rank, alpha=self.alpha, targets='',
                      dropout=self.dropout, rslora=self.rslora)

  def of(self, module: str) -> tuple[int, float]:
    """(rank, scale) of a module, by its name in the file."""
    rank = _matched(self.ranks, module, self.rank)
    alpha = _matched(self.alphas, module, self.alpha)
    return rank, alpha / (rank**0.5 if self.rslora else rank)


def read(file: pathlib.Path) -> Settings:
  """The settings in `file`.

  Raises:
    BadCheckpoint: it lacks rank or alpha.
    UnsupportedModel: a key that would mean other numbers, or a value out of range.
  """
  data = checked_json.read(file)
  known_keys.check(data, known_keys.ADAPTER, str(file))
  lacking = [key for key in ('r', 'lora_alpha') if data.get(key) is None]
  if lacking:
    raise BadCheckpoint(f'{file} is no configuration of a LoRA adapter: it lacks '
                        f'{" and ".join(lacking)}')
  fields = Fields(data, str(file))
  ranks, alphas = (fields.within(key) for key in ('rank_pattern', 'alpha_pattern'))
  return Settings(
      rank=fields.whole('r', low=1, high=_MOST_RANKS),
      alpha=fields.number('lora_alpha'),
      dropout=fields.share('lora_dropout', 0.0),
      rslora=fields.flag('use_rslora', False), dora=fields.flag('use_dora', False),
      ranks={_pattern(key, ranks.file): ranks.whole(key, None, 1, _MOST_RANKS)
             for key in ranks.data},
      alphas={_pattern(key, alphas.file): alphas.number(key) for key in alphas.data},
      tokens=_tokens(data.get('trainable_token_indices'), str(file)),
      saved=tuple(name for name in fields.texts('modules_to_save', [])
                  if name not in _HEADS),
      targets=_targets(data, fields))


def _targets(data: dict[str, Any], fields: Fields) -> tuple[str, ...]:
  some = any(data.get(key) not in (None, [], '')
             for key in ('layers_to_transform', 'exclude_modules'))
  listed = isinstance(data.get('target_modules'), list) and not some
  return tuple(fields.texts('target_modules')) if listed else ()


def _tokens(given: Any, file: str) -> dict[str, tuple[int, ...]]:
  by_name = given if isinstance(given, dict) else {'': given or []}
  if not all(isinstance(rows, list) and all(type(i) is int and i >= 0 for i in rows)
             for rows in by_name.values()):
    raise UnsupportedModel(f'{file}: trainable_token_indices is {short(given)}; it '
                           'must be a list of token ids, or such lists by name')
  return {name: tuple(rows) for name, rows in by_name.items() if rows}


def _pattern(key: str, where: str) -> str:
  """`key`, which PEFT reads as a regular expression, if it is a harmless one."""
  repeats = len(re.findall(r'[*+?{]', key))
  if len(key) <= _LONGEST and repeats <= _MOST_REPEATS and not re.search(
      r'\)[*+?{]|\(\?|\\\d', key):
    try:
      re.compile(key)
      return key
    except re.error:
      pass
  raise UnsupportedModel(f'{where}: {short(key)} is no name of modules, and no simple '
                         'pattern of names')


def _matched(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
  """The value of the first pattern that matches the end of a name, as PEFT has it."""
  return next((value for key, value in patterns.items()
               if re.match(rf'(.*\.)?({key})$', module)), usual)
