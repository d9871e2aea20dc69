"""Summary of a run before it starts: model, mesh, stages, estimated time."""

from collections.abc import Sequence
import time

import jax
import jax.numpy as jnp

from jaxembed import config, data, sharding, types
from jaxembed.train.stages import stages

# Share of a bare matmul's speed that a whole step reaches.
_EFFICIENCY = 0.5


def describe(cfg: config.Config, model: config.ModelConfig, params: types.Params,
             mesh: jax.sharding.Mesh, mixtures: Sequence[data.Mixture]) -> str:
  """The summary as text.  mixtures: one per stage."""
  size = sum(x.size for x in jax.tree.leaves(params))
  dense = sum(x.size for path, x in jax.tree.leaves_with_path(params)
              if 'kernel' in jax.tree_util.keystr(path))
  b = model.backbone
  lines = [
      f'run        {cfg.name}: {cfg.model.source or cfg.model.preset}',
      f'model      {b.num_layers} layers x {b.dim}, {model.attention}, '
      f'{model.pooling.kind} pooling, {size / 1e6:.1f} M parameters',
      f'mesh       {dict(mesh.shape)} on {mesh.size} x '
      f'{jax.devices()[0].device_kind}, activations {model.dtype}'
      + (f', products {model.precision}' if model.dtype == 'float32' else '')]
  flops = 0
  for s in stages(cfg):
    d = s.cfg.data
    group = 1 + d.num_negatives
    pairs = sum(mixtures[s.index].sizes)
    tokens = d.batch_size * (d.query_lengths[-1] + group * d.passage_lengths[-1])
    flops += 6 * dense * tokens * s.cfg.steps
    lines.append(
        f'stage      {s.cfg.name}: {s.cfg.steps} steps of {d.batch_size} queries out '
        f'of {pairs} pairs; {d.batch_size * group} candidates per query, '
        f'{d.batch_size * (1 + group)} texts or at most {tokens} tokens per step')
  minutes = flops / (mesh.size * _matmul_rate() * _EFFICIENCY) / 60
  lines.append(f'time       about {minutes:.0f} min at most, and compilation '
               f'({flops:.1e} FLOP, half the speed of a bare matmul)')
  return '\n'.join(lines)


def _matmul_rate(width: int = 1024) -> float:
  """FLOP/s of one device on a float32 product, measured now."""
  x = jnp.ones((width, width), out_sharding=sharding.spec(None, None))
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  begun = time.perf_counter()
  for _ in range(3):
    x = product(x)
  x.block_until_ready()
  return 3 * 2 * width**3 / (time.perf_counter() - begun)
