"""Conversion of arrays to torch tensors; torch is imported when asked for."""

from typing import Any

import numpy as np


def tensor(array: np.ndarray) -> Any:
  """A torch tensor on the CPU, of the array's own dtype.

  Raises:
    ModuleNotFoundError: torch is not installed.
  """
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'convert_to_tensor=True and convert_to_numpy=False give torch tensors, and '
        "torch is not installed; leave them out to get numpy arrays, or pip install "
        "'jaxembed[torch]'", name='torch') from error
  return torch.from_numpy(np.ascontiguousarray(array))


def as_asked(found: Any, convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
  """What `encode` returns: numpy, one torch tensor, or a list of torch tensors.

  found: an array, a list of arrays, or a list of dicts of arrays; lists stay lists.
  """
  if convert_to_numpy and not convert_to_tensor:
    return found
  if isinstance(found, np.ndarray):
    return tensor(found) if convert_to_tensor else [tensor(row) for row in found]
  return [{key: tensor(value) for key, value in item.items()}
          if isinstance(item, dict) else tensor(item) for item in found]
