"""Table of poolings by name; initialisation and application of those configured."""

import dataclasses
from typing import Any

from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxembed.config import PoolingConfig
from jaxembed.config.check import options
from jaxembed.pooling import latent_attention, layer_attention, pool, weighted_layers
from jaxembed.pooling.head import Head, States, Vectors
from jaxembed.types import Params

HEADS: dict[str, Head] = {head.kind: head for head in (
    *pool.HEADS, latent_attention.HEAD, layer_attention.HEAD, weighted_layers.HEAD)}


def of(cfg: PoolingConfig) -> tuple[Head, ...]:
  """The heads whose vectors stand side by side; one for most models.

  Raises:
    ValueError: a kind that the table does not have, or one with parameters beside
      others.
  """
  for kind in cfg.modes:
    if kind not in HEADS:
      raise ValueError(f'PoolingConfig.kind is {cfg.kind!r}; choose one of '
                       f'{", ".join(HEADS)}, or several without parameters, joined '
                       "by '+'")
  found = tuple(HEADS[kind] for kind in cfg.modes)
  if len(found) > 1 and any(head.init for head in found):
    raise ValueError(f'PoolingConfig.kind is {cfg.kind!r}; a pooling with parameters '
                     'stands alone')
  options(cfg, {k: v for head in found for k, v in head.options.items()},
          f'{cfg.kind} pooling')
  return found


def settings(cfg: PoolingConfig) -> dict[str, object]:
  """All that the pooling reads beside its kind, fields and options, by name."""
  found = of(cfg)
  return {name: getattr(cfg, name) for name in found[0].fields} | options(
      cfg, {k: v for head in found for k, v in head.options.items()}, cfg.kind)


def whole(cfg: PoolingConfig) -> PoolingConfig:
  """`cfg` with every option that the pooling reads, as its functions are given it."""
  found, taken = settings(cfg), fields(cfg)
  return dataclasses.replace(cfg, options=tuple(
      (name, x) for name, x in found.items() if name not in taken))


def init(cfg: PoolingConfig, dim: int, layers: int, key: Array) -> Params | None:
  """Parameters of a new head on states of width `dim`; None: it has none."""
  head = of(cfg)[0]
  return head.init(whole(cfg), dim, layers, key) if head.init else None


def apply(params: Params | None, cfg: PoolingConfig, states: States
          ) -> Array | Vectors:
  """Pooled states, not normalised.  -> [B,S,E] float32, or Vectors."""
  cfg = whole(cfg)
  parts: list[Any] = [head.apply(params, cfg, states) for head in of(cfg)]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def has_parameters(cfg: PoolingConfig) -> bool:
  """Whether a model with this pooling has a tree 'pooling'."""
  return of(cfg)[0].init is not None


def fields(cfg: PoolingConfig) -> tuple[str, ...]:
  """The fields of PoolingConfig that the pooling reads, beside its kind."""
  return of(cfg)[0].fields


def of_layer(cfg: PoolingConfig) -> str:
  """The pooling of every layer's states that the head reads; '': none."""
  return of(cfg)[0].of_layer(cfg)


def rules() -> tuple[tuple[str, P], ...]:
  """The rows of the sharding table for the parameters of all heads."""
  return tuple(dict.fromkeys(rule for head in HEADS.values() for rule in head.rules))
