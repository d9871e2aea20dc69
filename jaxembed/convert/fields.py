"""Typed reading of a settings file; errors name the key that is wrong or absent."""

from collections.abc import Mapping
import math
from typing import Any

from jaxembed.files.folder import short
from jaxembed.files.known_keys import UnsupportedModel

__all__ = ['Fields', 'UnsupportedModel']

_ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'relu': 'relu',
                'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
# Sizes beyond any model's; below them nothing overflows before tensors are compared.
_LARGEST = 2**30
MOST_LAYERS = 1000
_WIDEST = 2**20
# Keys of several families, and what they must be. A key of one family is read in its
# file, with `whole`, `number`, `flag` or another method that says it there.
_COUNTS = ('sliding_window', 'type_vocab_size', 'pad_token_id')
_SIZES = ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
          'num_attention_heads', 'num_key_value_heads', 'head_dim',
          'max_position_embeddings', 'original_max_position_embeddings')
_NUMBERS = ('rms_norm_eps', 'layer_norm_eps', 'rope_theta', 'partial_rotary_factor',
            'factor', 'low_freq_factor', 'high_freq_factor', 'attention_factor',
            'beta_fast', 'beta_slow')
_FLAGS = ('attention_bias', 'mlp_bias', 'use_bidirectional_attention', 'is_causal',
          'truncate')
_TEXTS = ('model_type', 'rope_type', 'type')
_OBJECTS = ('rope_parameters', 'rope_scaling', 'full_attention', 'sliding_attention')


class Fields:
  """Settings of one file, each read with its type and range.

  A null is an absent value, as everywhere in Hugging Face's files.

  Args:
    data: the parsed object.
    file: its name, for errors; of an object within, with the key.
  """

  def __init__(self, data: Mapping[str, Any], file: str = 'config.json'):
    self.data, self.file = data, file
    self.family = self.text('model_type')

  def need(self, key: str) -> Any:
    """The value, checked by its key; absent ones raise UnsupportedModel."""
    return self._present(key, self.get(key))

  def get(self, key: str, default: Any = None) -> Any:
    """The value, checked by its key; `default` where it is absent."""
    if key in _SIZES:
      return self.whole(key, default, 1)
    if key in _COUNTS:
      return self.whole(key, default)
    if key in _NUMBERS:
      return self.number(key, default)
    read = {**dict.fromkeys(_FLAGS, self.flag), **dict.fromkeys(_TEXTS, self.text),
            **dict.fromkeys(_OBJECTS, self.object), 'layer_types': self.texts,
            'short_factor': self.numbers, 'long_factor': self.numbers}[key]
    return read(key, default)

  def whole(self, key: str, default: Any = None, low: int = 0, high: int = _LARGEST
            ) -> Any:
    """A whole number from `low` to `high`."""
    high = min(high, MOST_LAYERS) if key == 'num_hidden_layers' else high
    return self._read(
        key, default, lambda v: type(v) is int and low <= v <= high,
        f'a whole number from {low} to {high}')

  def size(self, key: str, high: int = _WIDEST) -> int:
    """A width or count from 1 to `high` that must be there."""
    return self._present(key, self.whole(key, None, 1, high))

  def number(self, key: str, default: Any = None) -> Any:
    """A number above 0."""
    return self._read(
        key, default, lambda v: type(v) in (int, float) and v > 0 and _finite(v),
        'a number above 0')

  def amount(self, key: str, default: Any = None) -> Any:
    """A number of 0 or more."""
    return self._read(
        key, default, lambda v: type(v) in (int, float) and v >= 0 and _finite(v),
        'a number of 0 or more')

  def share(self, key: str, default: Any = None) -> Any:
    """A number from 0 up to, but not, 1."""
    return self._read(key, default, lambda v: type(v) in (int, float) and 0 <= v < 1,
                      'a number from 0 up to 1')

  def numbers(self, key: str, default: Any = None) -> Any:
    """A list of numbers above 0."""
    return self._read(
        key, default, lambda v: isinstance(v, list) and all(
            type(x) in (int, float) and x > 0 and _finite(x) for x in v),
        'a list of numbers above 0')

  def marks(self, key: str, default: Any = None) -> Any:
    """A list of 0 and 1, or of true and false."""
    return self._read(
        key, default, lambda v: isinstance(v, list) and all(
            type(x) in (int, bool) and x in (0, 1) for x in v),
        'a list of 0 and 1')

  def flag(self, key: str, default: Any = None) -> Any:
    """True or False."""
    return self._read(key, default, lambda v: type(v) is bool, 'true or false')

  def text(self, key: str, default: Any = None) -> Any:
    """A text."""
    return self._read(key, default, lambda v: isinstance(v, str), 'a text')

  def texts(self, key: str, default: Any = None) -> Any:
    """A list of texts."""
    return self._read(
        key, default, lambda v: isinstance(v, list) and all(
            isinstance(x, str) for x in v), 'a list of texts')

  def object(self, key: str, default: Any = None) -> Any:
    """A JSON object."""
    return self._read(key, default, lambda v: isinstance(v, dict), 'an object')

  def within(self, key: str) -> 'Fields':
    """The settings of the object `key`; none where it is absent."""
    return Fields(self.object(key, {}), f'{self.file}: {key}')

  def _present(self, key: str, value: Any) -> Any:
    if value is None:
      of = f' (model_type {self.family!r})' if self.family else ''
      raise UnsupportedModel(f'{self.file}{of} lacks {key!r}')
    return value

  def _read(self, key: str, default: Any, holds, wanted: str) -> Any:
    value = self.data.get(key)
    if value is None:
      return default
    if not holds(value):
      raise UnsupportedModel(
          f'{self.file}: {key} is {short(value)}; it must be {wanted}')
    return value

  def activation(self, key: str, default: str) -> str:
    """The activation of the feed-forward layers, by our name."""
    name = self.text(key, default)
    if name not in _ACTIVATIONS:
      raise UnsupportedModel(
          f'{self.file}: activation {short(name)} is not supported; known: '
          f'{", ".join(sorted(_ACTIVATIONS))}')
    return _ACTIVATIONS[name]


def _finite(value: float) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer beyond any float
    return False
