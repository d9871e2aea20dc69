"""Small encoders whose every parameter counts, and rows of tokens for them."""

import jax
import numpy as np

from jaxembed.config import ModelConfig
from jaxembed.models import encoder, presets
from jaxembed.types import Params, Tokens


def drawn(cfg: ModelConfig) -> Params:
  """Parameters none of which stays at a value that hides it."""
  leaves, tree = jax.tree.flatten(encoder.init_params(cfg, jax.random.key(0)))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return jax.tree.unflatten(tree, [
      x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def model(family: str, **fields) -> tuple[ModelConfig, Params]:
  """A tiny model of a family; fields: of its ModelConfig."""
  cfg = ModelConfig(backbone=presets.tiny(family), **fields)
  return cfg, drawn(cfg)


def tokens(rows=4, length=12, lengths=None, side='right') -> Tokens:
  """Texts of random lengths, or of these, padded on a side."""
  rng = np.random.default_rng(0)
  ids = rng.integers(2, 96, (rows, length)).astype(np.int32)
  count = np.array(lengths or rng.integers(2, length + 1, rows))[:, None]
  place = np.arange(length)[None]
  mask = place < count if side == 'right' else place >= length - count
  return Tokens(ids=np.where(mask, ids, 0), mask=mask, pool=mask)
