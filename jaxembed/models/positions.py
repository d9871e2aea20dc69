"""Positions of tokens: their places in their texts, and how long these are."""

from jax import lax
import jax.numpy as jnp

from jaxembed.config import BackboneConfig
from jaxembed.types import Array, Tokens


def of_tokens(cfg: BackboneConfig, tokens: Tokens) -> Array:
  """-> [B,T] int32; text starts at 0 unless cfg says the row does."""
  mask, segment = tokens.mask, tokens.segment
  if cfg.position_offset:
    return _by_id(cfg, tokens)
  index = _columns(mask)
  if segment is not None:
    return index - _starts(segment, index)
  if cfg.positions == 'index':
    return index
  return in_text(mask)


def in_text(mask: Array) -> Array:
  """Places of tokens counted from the first of their row's text.  [B,T] int32."""
  return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def counts(tokens: Tokens) -> Array:
  """How many tokens the text of each token has.  -> [B,T] int32, of padding too."""
  mask = tokens.mask
  index = _columns(mask)
  if tokens.segment is None:
    return index * 0 + mask.sum(1, keepdims=True, dtype=jnp.int32)
  segment = jnp.where(mask, tokens.segment, -1)
  last = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (0, 1)),
                 constant_values=True)
  end = lax.cummin(jnp.where(last, index, mask.shape[1]), axis=1, reverse=True)
  return end - _starts(segment, index) + 1


def _columns(mask: Array) -> Array:
  return jnp.zeros_like(mask, jnp.int32) + jnp.arange(mask.shape[1])[None]


def _starts(segment: Array, index: Array) -> Array:
  """The column in which the text of each token begins.  -> [B,T] int32."""
  return lax.cummax(jnp.where(_begins(segment), index, 0), axis=1)


def _begins(segment: Array) -> Array:
  return jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)))


def _by_id(cfg: BackboneConfig, tokens: Tokens) -> Array:
  """RoBERTa's count of the tokens that are not the padding id, [B,T] int32.

  That id gets -1, the row before the first position, also where a text spells it.
  """
  counted = jnp.asarray(tokens.mask) & (tokens.ids != cfg.position_offset - 1)
  total = jnp.cumsum(counted, axis=1, dtype=jnp.int32)
  if tokens.segment is not None:
    total -= lax.cummax(
        jnp.where(_begins(tokens.segment), total - counted, 0), axis=1)
  return jnp.where(counted, total - 1, -1)
