"""Low-rank adapters as a transform of the parameter tree.

Beside a kernel [L,in,out] stand `lora_a` [L,in,R] and `lora_b` [L,R,out]; the
layer adds scale x A B (Hu et al. 2021, arXiv 2106.09685) without ever forming
the product. Everything else about the tree, the config and the forward pass is
as before.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp

from jaxembed import paths, precision
from jaxembed.config import LoraConfig, ModelConfig
from jaxembed.types import Array, Params


def add(params: Params, cfg: LoraConfig, key: Array) -> Params:
  """`params` with fresh adapters in the dtype of their kernels; B is zero, so
  nothing changes yet.

  Raises:
    ValueError: cfg.targets matches no kernel of the backbone's layers.
  """
  found = targets(params, cfg.targets)
  keys = dict(zip(found, jax.random.split(key, len(found))))

  def adapt(path: str, node: Params) -> Params:
    kernel = node['kernel']
    layers, width, features = kernel.shape
    bound = width**-0.5  # as torch draws a Linear, and PEFT an A
    a = jax.random.uniform(keys[path], (layers, width, cfg.rank), jnp.float32,
                           -bound, bound)
    return {**node, 'lora_a': a.astype(kernel.dtype),
            'lora_b': jnp.zeros((layers, cfg.rank, features), kernel.dtype)}

  return _at(params, set(found), adapt)


def targets(params: Params, pattern: str) -> list[str]:
  """Paths of the layers' projections that `pattern` matches, sorted."""
  known = sorted(path for path, node in _nodes(params)
                 if 'kernel' in node and paths.is_stacked(path))
  found = [p for p in known if re.search(pattern, p)]
  if not found:
    raise ValueError(f'lora.targets {pattern!r} matches no kernel; there are '
                     f'{", ".join(known)}')
  return found


def merge(params: Params, cfg: ModelConfig) -> tuple[Params, ModelConfig]:
  """Adapters folded into their kernels: (params, cfg) of a plain model.

  The sum is formed in float32 and rounded to the kernel's dtype.
  """
  if cfg.lora is None:
    return params, cfg
  scale = cfg.lora.scale

  def fold(path: str, node: Params) -> Params:
    a, b = (node[name].astype(jnp.float32) for name in paths.ADAPTERS)
    kernel = node['kernel']
    update = scale * precision.einsum('LDR,LRF->LDF', a, b)
    merged = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    rest = {k: v for k, v in node.items() if k not in paths.ADAPTERS}
    return {**rest, 'kernel': merged}

  adapted = {path for path, node in _nodes(params) if 'lora_a' in node}
  return _at(params, adapted, fold), dataclasses.replace(cfg, lora=None)


def _nodes(tree: Params, path: str = ''):
  """(path, dict) of every inner node."""
  for name, child in tree.items():
    if isinstance(child, dict):
      here = f'{path}/{name}'.lstrip('/')
      yield here, child
      yield from _nodes(child, here)


def _at(tree: Params, paths: set[str], change, path: str = '') -> Params:
  """A copy of `tree` whose nodes at `paths` are change(path, node)."""
  out = {}
  for name, child in tree.items():
    here = f'{path}/{name}'.lstrip('/')
    if here in paths:
      child = change(here, child)
    elif isinstance(child, dict):
      child = _at(child, paths, change, here)
    out[name] = child
  return out
