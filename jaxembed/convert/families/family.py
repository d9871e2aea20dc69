"""Conversion record of a backbone family: its checkpoints read, written, checked."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

from jaxembed.config import BackboneConfig
from jaxembed.convert.fields import Fields
from jaxembed.convert.rows import Row

# Keys of config.json that must have this value or be absent: anything else means
# numbers that this library would not reproduce.
ONLY: dict[str, Any] = {
    'position_embedding_type': 'absolute',
    'is_decoder': False,
    'add_cross_attention': False,
    'embedding_size': None,
    'quantization_config': None,
    'compression_config': None,
}
# The same of families that read the width of their embeddings.
ONLY_BUT_WIDTH = {key: value for key, value in ONLY.items() if key != 'embedding_size'}


@dataclasses.dataclass(frozen=True)
class Family:
  """Conversion of one model_type of Hugging Face; a row of families.FAMILIES.

  What its layers are made of is its row of models.presets.FEATURES.

  Attributes:
    architecture: transformers' class of the base model, as config.json names it; '' for
      a family that it lacks, whose code lies in the folders of its models.
    read: config.json -> fields of BackboneConfig that are not the family's features.
      Raises UnsupportedModel for values that would change the numbers.
    write: its inverse, every key but architectures and model_type; the second
      argument says whether a decoder attends both ways.
    rows: of the table for a configuration, in the order of torch's modules.
    prefixes: that stand before all names in models for other tasks.
    ignored: patterns of tensors that no embedding uses (other heads, buffers).
    cases: name in the parity report -> fields of transformers' own configuration, of
      a small model that is compared with torch.
    pooler: whether transformers draws a pooler that the checkpoint does not have.
    only: key of config.json -> the value beside null that it may have.
    defaults: what transformers takes where config.json lacks a key and null means
      something else.
    older_keys: of a config.json that transformers does not read; a model with one
      leaves with a new one.
  """

  architecture: str
  read: Callable[[Fields], dict[str, Any]]
  write: Callable[[BackboneConfig, bool], dict[str, Any]]
  rows: Callable[[BackboneConfig], Iterable[Row]]
  prefixes: tuple[str, ...]
  ignored: tuple[str, ...]
  cases: Mapping[str, Mapping[str, Any]]
  pooler: bool = False
  only: Mapping[str, Any] = dataclasses.field(default_factory=lambda: ONLY)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  older_keys: tuple[str, ...] = ()
