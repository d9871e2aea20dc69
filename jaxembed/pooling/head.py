"""Head: the record of one kind of pooling, and the states it reads."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxembed.config import PoolingConfig
from jaxembed.types import Params


@functools.partial(
    jax.tree_util.register_dataclass, meta_fields=('slots',),
    data_fields=('hidden', 'segment', 'text', 'layers'))
@dataclasses.dataclass(frozen=True)
class States:
  """Token states that a pooling reads, of B rows that hold up to S texts each."""

  hidden: Array  # [B,T,D], of the last layer
  segment: Array  # [B,T] int32, the text a token counts for; negative: for none
  text: Array  # [B,T] int32, the text a token belongs to; negative: padding
  slots: int  # S
  layers: Array | None = None  # [L,B,D], what Head.of_layer keeps of each layer


class Vectors(NamedTuple):
  """Several vectors for each text, as a pooling may return instead of one."""

  values: Array  # [B,S,M,E] float32
  mask: Array  # [B,S,M] bool, true where there is a vector


class Tensor(NamedTuple):
  """One parameter of a pooling, and its tensor in the torch module."""

  name: str
  path: str  # below 'pooling/'
  transpose: bool = False
  out_axes: int = 1  # of a transposed kernel: how many axes form `out`


class Mode(NamedTuple):
  """How sentence-transformers calls a pooling: its mode, and the older key."""

  name: str
  key: str


class Twin(NamedTuple):
  """The torch module of a part of a model: one file, which leaves with an export."""

  source: str  # of jaxembed/convert/, or an absolute path
  module: str  # name of the file in an export, without .py
  cls: str
  keys: tuple[tuple[str, str], ...] = ()  # (key of its settings, field or option)

  @property
  def type(self) -> str:
    """What modules.json calls it."""
    return f'{self.module}.{self.cls}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """A kind of pooling.

  kind: its name in PoolingConfig.
  apply: (params, cfg, States) -> [B,S,E] float32, not normalised, or Vectors; params
    are None where it has none.
  words: 'a text becomes 384 numbers by ...', for the card of an export.
  init: (cfg, dim, layers, key) -> parameters; None: it has none.
  fields: of PoolingConfig that it reads.
  options: of PoolingConfig.options, those that it reads, with their defaults; the
    configuration that the functions are given has all of them.
  rules: (pattern, spec) rows of the sharding table for its parameters.
  tensors: cfg -> its parameters in a checkpoint.
  packs: whether several texts may share a row.
  splits: whether `hidden` may have its tokens split over the mesh axis 'sequence';
    otherwise they are gathered before.
  of_layer: cfg -> the kind of pooling applied to every layer's states, for
    States.layers; '': none.
  mode: of sentence-transformers, if it has this pooling.
  twin: else its torch module; without either it is not exported.
  """

  kind: str
  apply: Callable[[Any, PoolingConfig, States], Array | Vectors]
  words: str
  init: Callable[[PoolingConfig, int, int, jax.Array], Params] | None = None
  fields: tuple[str, ...] = ()
  options: Mapping[str, object] = dataclasses.field(default_factory=dict)
  rules: tuple[tuple[str, P], ...] = ()
  tensors: Callable[[PoolingConfig], tuple[Tensor, ...]] = lambda cfg: ()
  packs: bool = True
  splits: bool = False
  of_layer: Callable[[PoolingConfig], str] = lambda cfg: ''
  mode: Mode | None = None
  twin: Twin | None = None


def of_each_text(pooler: Callable[[Array, Array, Array], Array], states: States
                 ) -> Array:
  """`pooler` of (hidden [B,T,D], pool [B,T], text [B,T]) -> [B,D], for every text.

  pool: tokens that count; text: all tokens of the text.  -> [B,S,D].
  """
  def one(number):
    return pooler(states.hidden, states.segment == number, states.text == number)

  if states.slots == 1:
    return one(0)[:, None]
  return jax.vmap(one, out_axes=1)(jnp.arange(states.slots, dtype=jnp.int32))
