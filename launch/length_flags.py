"""Flags for texts longer than a model was trained on."""

import dataclasses

from absl import flags

from jaxembed import config, embedder


@dataclasses.dataclass(frozen=True)
class LengthFlags:
  """The flags of a launcher that reads texts."""

  length: flags.FlagHolder
  long_texts: flags.FlagHolder
  max_length: flags.FlagHolder

  def method(self) -> config.LengthConfig | None:
    """What --length asks for; None: nothing."""
    return config.parse_length(self.length.value) if self.length.value else None

  def apply(self, model: embedder.Embedder) -> None:
    """Puts the other flags into effect on a model that is loaded."""
    if self.max_length.value is not None:
      model.max_seq_length = self.max_length.value
    if self.long_texts.value is not None:
      model.long_texts = self.long_texts.value


def define() -> LengthFlags:
  """Defines --length, --long_texts and --max_length."""
  return LengthFlags(
      flags.DEFINE_string(
          'length', None, 'A method for texts longer than those of training, such as '
          'self_extend:target=2048 or grouped:target=4096 (docs/long_texts.md).'),
      flags.DEFINE_enum(
          'long_texts', None, ('cut', 'windows'), 'Texts longer than the model reads '
          'are cut, or have the mean of the vectors of their windows.'),
      flags.DEFINE_integer('max_length', None, 'Tokens beyond which a text is long; '
                           "default: the model's."))
