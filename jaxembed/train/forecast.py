"""Summary of a run before it starts: model, mesh, stages, estimated time."""

from collections.abc import Sequence
import time

import jax
import jax.numpy as jnp

from jaxembed import config, data, precision, sharding, types
from jaxembed.train import cost
from jaxembed.train.stages import stages

# Share of a bare matmul's speed that a whole step reaches.
_EFFICIENCY = 0.5


def describe(cfg: config.Config, model: config.ModelConfig, params: types.Params,
             mesh: jax.sharding.Mesh, mixtures: Sequence[data.Mixture]) -> str:
  """The summary as text.  mixtures: one per stage."""
  size = sum(x.size for x in jax.tree.leaves(params))
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
    flops += s.cfg.steps * cost.step_flops(
        model, s.cfg, sharding.batch_shards(mesh))
    lines.append(
        f'stage      {s.cfg.name}: {s.cfg.steps} steps of {d.batch_size} queries out '
        f'of {pairs} pairs; {d.batch_size * group} candidates per query, '
        f'{d.batch_size * (1 + group)} texts or at most {tokens} tokens per step')
  minutes = flops / (mesh.size * _matmul_rate(model) * _EFFICIENCY) / 60
  lines.append(f'time       about {minutes:.0f} min at most, and compilation '
               f'({flops:.1e} FLOP, half the speed of a bare matmul as measured now)')
  return '\n'.join(lines)


def _matmul_rate(model: config.ModelConfig, width: int = 1024) -> float:
  """FLOP/s of one device on a product of the model's dtype and precision, now."""
  x = jnp.ones((width, width), model.dtype, out_sharding=sharding.spec(None, None))

  @jax.jit
  def product(x):
    with precision.scope(model):
      return x @ x

  product(x).block_until_ready()
  begun = time.perf_counter()
  for _ in range(3):
    x = product(x)
  x.block_until_ready()
  return 3 * 2 * width**3 / (time.perf_counter() - begun)
