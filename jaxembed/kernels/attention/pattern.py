"""Attention patterns: causal, bidirectional and prefix, windows, packed texts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxembed.types import Array

# What a policy of jax.checkpoint calls the output of tiles and its log-sum-exp, which
# their backward pass needs.
ATTENTION = 'attention'
# Farther than any two tokens of a row are apart.
_ANY = 2**30


@functools.partial(
    jax.tree_util.register_dataclass, meta_fields=('causal', 'window', 'packed'),
    data_fields=('text', 'prefix', 'windowed'))
@dataclasses.dataclass(frozen=True)
class Pattern:
  """Which keys of its row a query attends to, without a [T,T] mask.

  Distances are between places in the row, which inside a text are those between its
  tokens.
  """

  # [B,T] int32, the text that a token belongs to; negative: padding. A token attends
  # to those of its own text; padding is attended to by nothing, and what it attends to
  # means nothing.
  text: Array
  causal: bool  # to keys at its own place and before it alone
  window: int = 0  # to keys nearer than so many places; 0: all
  prefix: Array | None = None  # [B,T] bool, keys that a causal pattern shows to all
  windowed: Array | None = None  # [] bool, whether the window holds here; None: yes
  packed: bool = False  # whether a row may hold several texts

  @property
  def limit(self) -> Array | int | None:
    """The distance that keys stay below; None: there is no limit."""
    if not self.window or self.windowed is None:
      return self.window or None
    return jnp.where(self.windowed, self.window, _ANY)


def of_tokens(mode: str, mask: Array, segment: Array | None = None, *,
              window: int = 0, prefix: Array | None = None,
              positions: Array | None = None) -> Pattern:
  """The pattern of a row of tokens.

  Args:
    mode: 'causal', 'bidirectional', or 'prefix': causal, but the first `prefix`
      tokens of a row are attended to by all.
    mask: [B,T] bool, true on text.
    segment: [B,T] int32, which of its row's texts a token belongs to.
    window: number of keys on the left (own one included) that a query attends to,
      and on the right when bidirectional; 0: no limit.
    prefix: [B] int32, for mode 'prefix'.
    positions: [B,T] int32, the tokens' numbers in their row, for mode 'prefix'.
  """
  text = jnp.where(mask, 0 if segment is None else segment, -1).astype(jnp.int32)
  shown = None
  if mode == 'prefix':
    assert positions is not None and prefix is not None  # encoder asks for both
    shown = positions < prefix[:, None]
  return Pattern(text, causal=mode != 'bidirectional', window=window, prefix=shown,
                 packed=segment is not None)


def visible(query_text: Array, key_text: Array, query_place: Array, key_place: Array,
            prefix: Array | None, causal: bool, limit: Array | int | None,
            packed: bool) -> jax.Array:
  """True where a query attends to a key.

  query_text [B,T], key_text [B,S], query_place [T], key_place [S], prefix [B,S];
  causal, limit, packed: of Pattern.  -> [B,T,S] bool, or [B,1,S] where all queries
  attend to the same.
  """
  seen = (key_text >= 0)[:, None]
  if packed:
    seen = seen & (query_text[:, :, None] == key_text[:, None])
  ahead = key_place[None] - query_place[:, None]
  if causal:
    allowed = (ahead <= 0)[None]
    seen = seen & (allowed if prefix is None else allowed | prefix[:, None])
  if limit is not None:
    seen = seen & (abs(ahead) < limit)[None]
  return jnp.asarray(seen)


def by_distance(bias: Array, rows: int, columns: int) -> jax.Array:
  """Terms of scores that depend on key minus query alone, for a tile of them.

  bias [...,rows+columns-1], of distances 1-rows to columns-1.  -> [...,rows,columns].
  """
  bias = _one_wider(bias)[..., None, :]
  return _moved(jnp.broadcast_to(
      bias, (*bias.shape[:-2], rows, rows + columns)))


def by_row(x: Array) -> jax.Array:
  """Each row of x moved by its number: place t of row r from column t-r+R-1 of it.

  x [...,R,2R-1], of distances 1-R to R-1 of the row's own place -> [...,R,R].
  """
  return _moved(_one_wider(x))


def _one_wider(x: Array) -> jax.Array:
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])


def _moved(x: jax.Array) -> jax.Array:
  """x [...,R,W], its last column unread -> [...,R,W-R]: row r from column R-1-r.

  Rows are read as one shorter than they are, which moves each by one more.
  """
  *lead, rows, width = x.shape
  flat = x.reshape(*lead, rows * width)[..., :rows * (width - 1)]
  return flat.reshape(*lead, rows, width - 1)[..., rows - 1:]
