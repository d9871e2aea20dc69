"""Options of a loss (LossConfig.options): defaults filled in, values checked."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from jaxembed import config
from jaxembed.config import check

Check = Callable[[Mapping[str, Any]], None]


def resolved(cfg: config.LossConfig, defaults: Mapping[str, object],
             checked: Check | None = None) -> config.LossConfig:
  """`cfg` with every option that its loss reads.

  Raises ValueError for one that it does not read, and for values that mean nothing.
  """
  whole = check.options(cfg, defaults, f'the loss {cfg.name}')
  if checked:
    checked(whole)
  return dataclasses.replace(cfg, options=tuple(whole.items())) if defaults else cfg


def require(values: Mapping[str, Any], name: str, holds: bool, wanted: str) -> None:
  """Raises ValueError, naming the option and what is wanted, unless `holds`."""
  if not holds:
    raise ValueError(f'LossConfig.options: {name} is {values[name]!r}; give {wanted}')
