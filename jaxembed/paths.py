"""Paths of parameters, such as 'backbone/layers/attn/q/kernel': a public contract.

Checkpoints, the sharding table, conversion, LoRA and optimiser rules key on them.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxembed.types import Params

ADAPTERS = ('lora_a', 'lora_b')


def join(keys: tuple) -> str:
  """The path of a leaf, from the keys that jax.tree.map_with_path gives."""
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def flatten(params: Params) -> dict[str, Any]:
  """{'a': {'b': x}} -> {'a/b': x}."""
  return {join(keys): leaf for keys, leaf in jax.tree.leaves_with_path(params)}


def unflatten(flat: dict[str, Any]) -> Params:
  """Inverse of `flatten`."""
  tree: Params = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def mapped(choose: Callable[[str], Any], params: Params) -> Params:
  """A tree like `params` of choose(path)."""
  return jax.tree.map_with_path(lambda keys, _: choose(join(keys)), params)


def in_backbone(path: str) -> bool:
  """Whether the parameter belongs to the transformer, not to what follows it."""
  return path.startswith('backbone/')


def is_stacked(path: str) -> bool:
  """Whether the first axis is that of the layers."""
  return '/layers/' in f'/{path}'


def is_kernel(path: str) -> bool:
  """Whether the parameter is a matrix that states are multiplied with."""
  return path.rpartition('/')[2] == 'kernel'


def is_expert(path: str) -> bool:
  """Whether the parameter holds a matrix of each expert."""
  return path.endswith(('mlp/gate_kernel', 'mlp/up_kernel', 'mlp/down_kernel'))


def is_adapter(path: str) -> bool:
  """Whether the parameter is a matrix of LoRA."""
  return path.rpartition('/')[2] in ADAPTERS
