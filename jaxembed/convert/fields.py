"""Reading one config.json: what is absent or unknown is named."""

from collections.abc import Mapping
from typing import Any

_ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'relu': 'relu',
                'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}


class UnsupportedModel(ValueError):
  """This config.json describes a model the library does not compute."""


class Fields:
  """Reads config.json; an absent required field is named."""

  def __init__(self, data: Mapping[str, Any]):
    self.data = data
    self.family = data.get('model_type')

  def need(self, key: str):
    if self.data.get(key) is None:
      raise UnsupportedModel(
          f'config.json (model_type {self.family!r}) lacks {key!r}')
    return self.data[key]

  def get(self, key: str, default=None):
    value = self.data.get(key)
    return default if value is None else value

  def activation(self, default: str) -> str:
    name = self.get('hidden_activation') or self.get('hidden_act', default)
    if name not in _ACTIVATIONS:
      raise UnsupportedModel(
          f'config.json: activation {name!r} is not supported; known: '
          f'{", ".join(sorted(_ACTIVATIONS))}')
    return _ACTIVATIONS[name]
