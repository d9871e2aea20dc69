"""Tiny models that read texts longer than those of training, by a length method."""

import dataclasses
import functools

import jax
import numpy as np

from jaxembed.config import LengthConfig, ModelConfig
from jaxembed.models import length, length_rule, presets
from tests.helpers import tiny_encoder

O, T = 16, 64  # tokens of training, and in use


@functools.cache
def model(family: str):
  cfg = ModelConfig(max_length=O, backbone=dataclasses.replace(
      presets.tiny(family), max_positions=O))
  return cfg, tiny_encoder.drawn(cfg)


def extended(family: str, method: str, **options):
  cfg, params = model(family)
  if method == 'theta':
    options['theta'] = 1e5
  wanted = LengthConfig(method=method, target=T, **options)
  return length.extend(params, cfg, wanted, jax.random.key(2))[::-1]


def rule(cfg, n, **options):
  """What a text of `n` tokens is read by."""
  index = np.arange(n)[None].astype(np.int32)
  return length_rule.rule(cfg, index, np.full_like(index, n), **options)
