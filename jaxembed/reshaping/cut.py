"""Sub-models: fewer layers, and shorter vectors, as models of their own.

What Matryoshka training (of widths, or of layers and widths) makes usable is cut out
here, so that every library that opens the export computes the small model alone.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from jaxembed import paths
from jaxembed.bundle import Bundle
from jaxembed.config import DenseConfig
from jaxembed.convert import tables
from jaxembed.models import encoder


def layers(model: Bundle, keep: Sequence[int]) -> Bundle:
  """`model` with the layers `keep` alone, in that order; what follows them stays.

  The norm behind the last layer, where there is one, is applied to the last layer
  kept.

  Raises:
    ValueError: layers that are not there or not in order; a first layer other than 0
      in a family whose layer 0 is unlike others; a head that has one part per layer.
  """
  backbone = model.cfg.backbone
  count, keep = backbone.num_layers, list(keep)
  if backbone.own_layers:
    raise ValueError(f'the layers of {backbone.family} share their parameters, so none '
                     'can be taken out')
  if not keep or keep != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < count:
    raise ValueError(f'layers {keep} must be some of 0 to {count - 1}, ascending')
  if keep[0] and any(row.skip_layers for row in tables.backbone_table(backbone).rows):
    raise ValueError(f'layer 0 of {backbone.family} lacks a part that others have; '
                     f'keep it (layers 0, {", ".join(map(str, keep))})')
  if backbone.layer_input_dim:
    raise ValueError(f'{backbone.family} has one matrix for what its layers read of '
                     'the embeddings, which is not cut; at_layer ends it earlier')
  changed = {f.name: tuple(value[i] for i in keep)  # what is said layer by layer
             for f in dataclasses.fields(backbone)
             if isinstance(value := getattr(backbone, f.name), tuple)
             and len(value) == count}
  cfg = dataclasses.replace(model.cfg, backbone=dataclasses.replace(
      backbone, num_layers=len(keep), **changed))
  if model.cfg.prepend is not None:
    below = {name: sum(i < getattr(model.cfg.prepend, name) for i in keep)
             for name in ('start', 'stop')}
    cfg = dataclasses.replace(
        cfg, prepend=dataclasses.replace(model.cfg.prepend, **below))
  where = np.array(keep)
  params = {path: x[where] if path.startswith(tables.LAYERS) else x
            for path, x in paths.flatten(model.params).items()}
  return _checked(model, paths.unflatten(params), cfg)


def width(model: Bundle, dims: int) -> Bundle:
  """`model` whose vectors are the first `dims` numbers of today's.

  They are scaled to length 1 after the cut where they were before, as Matryoshka
  training compares them. The cut is one of the last dense layer's columns, or a dense
  layer of ones and zeros where there is none: plain modules that every server has.

  Raises:
    ValueError: not fewer dimensions than there are.
  """
  cfg = model.cfg
  if not 0 < dims < cfg.embedding_dim:
    raise ValueError(f'width {dims} must be 1 to {cfg.embedding_dim - 1}: vectors have '
                     f'{cfg.embedding_dim} numbers')
  params = {**model.params, 'dense': dict(model.params.get('dense', {}))}
  if cfg.dense and cfg.dense[-1].by_column:
    at, layer = len(cfg.dense) - 1, cfg.dense[-1]
    params['dense'][str(at)] = _columns(params['dense'][str(at)], dims)
    if layer.residual and layer.features == cfg.widths[at]:  # v itself was added
      kernel = params['dense'][str(at)]['kernel']
      params['dense'][str(at)]['residual'] = np.eye(
          layer.features, dims, dtype=kernel.dtype)
    dense = (*cfg.dense[:-1], dataclasses.replace(layer, features=dims))
  else:
    dtype = params['backbone']['embed']['token'].dtype
    kernel = np.eye(cfg.embedding_dim, dims, dtype=dtype)
    params['dense'][str(len(cfg.dense))] = {'kernel': kernel}
    dense = (*cfg.dense, DenseConfig(features=dims, bias=False))
  found = _checked(model, params, dataclasses.replace(cfg, dense=dense))
  kept = model.truncate_dim
  return dataclasses.replace(
      found, truncate_dim=None if kept is None or kept >= dims else kept)


def _columns(dense: dict[str, Any], dims: int) -> dict[str, Any]:
  return {name: x[..., :dims] for name, x in dense.items()}


def _checked(model: Bundle, params, cfg) -> Bundle:
  """The cut model, its tensors as its configuration has them."""
  wanted = {p: s.shape for p, s in paths.flatten(encoder.param_shapes(cfg)).items()}
  found = {p: x.shape for p, x in paths.flatten(params).items()
           if not p.startswith('loss/')}
  for path in sorted(wanted.keys() | found.keys()):
    if wanted.get(path) != found.get(path):
      raise ValueError(f'{path} is {found.get(path)} and would have to be '
                       f'{wanted.get(path)} in the smaller model, which this kind of '
                       'model cannot be cut to')
  params = {k: jax.tree.map(np.asarray, v) if k == 'dense' else v
            for k, v in params.items() if k != 'loss'}
  return dataclasses.replace(model, params=params, cfg=cfg, base='', original=None)
