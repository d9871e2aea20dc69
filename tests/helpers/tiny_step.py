"""Updates small enough for tests: a model, batches, curves on any mesh."""

import dataclasses
import re

import jax
import numpy as np

from jaxembed import config, data, sharding, types
from jaxembed.data import pack
from jaxembed.models import encoder, presets
from jaxembed.train import plan, step

Q = 16
STAGE = config.StageConfig(
    steps=10, data=config.DataConfig(query_lengths=(8,), passage_lengths=(12,)),
    loss=config.LossConfig(temperature=0.1),
    optim=config.OptimConfig(peak_lr=1e-3, warmup_steps=2))


def model(pooling: str = 'mean', **fields) -> config.ModelConfig:
  return config.ModelConfig(
      backbone=dataclasses.replace(presets.tiny('mistral'), vocab_size=100),
      pooling=config.PoolingConfig(
          kind=pooling, latents=8, heads=2, head_dim=8, ff_mult=2), **fields)


def mesh(shape: tuple[int, int, int]):
  """Of so many of the eight devices."""
  return sharding.make_mesh(shape, jax.devices()[:int(np.prod(shape))])


def batches(count: int, negatives: int = 1) -> list[types.PairBatch]:
  """On the host: Q queries, a positive and some negatives each."""
  rng, group = np.random.default_rng(0), 1 + negatives
  pairing = types.Pairing(
      owner=np.repeat(np.arange(Q, dtype=np.int32), group),
      is_positive=np.arange(Q * group) % group == 0,
      query_id=np.arange(Q, dtype=np.int32),
      passage_id=100 + np.arange(Q * group, dtype=np.int32),
      group=np.arange(Q, dtype=np.int32) % 2, in_batch=np.ones(Q, bool))
  return [types.PairBatch(_tokens(rng, Q, 8), _tokens(rng, Q * group, 12), pairing)
          for _ in range(count)]


def _tokens(rng, n, t):
  mask = np.arange(t) < rng.integers(2, t + 1, (n, 1))
  return types.Tokens(rng.integers(1, 100, (n, t)).astype(np.int32), mask, mask)


def packed(batch: types.PairBatch, shards: int, width: int) -> types.PackedPairs:
  """The same batch with its texts sharing rows, over so many devices."""
  def ragged(tokens):
    lengths = tokens.mask.sum(1)
    return data.Ragged(
        tokens.ids[tokens.mask], np.concatenate([[0], np.cumsum(lengths)]),
        (tokens.mask & ~tokens.pool).sum(1), np.zeros(len(lengths), bool))

  passages = len(batch.passage.ids) // Q
  return types.PackedPairs(*pack.share_rows(
      ragged(batch.query), ragged(batch.passage), np.arange(Q + 1) * passages,
      np.arange(Q), shards, width=width, passages=passages, pad_id=0), batch.pairing)


_updates = {}


def _update(cfg: config.ModelConfig, stage: config.StageConfig):
  """The update of a model and a stage: the curves of the last one share programs."""
  key = repr((cfg, stage))
  if key not in _updates:
    _updates.clear()
    _updates[key] = step.make_update(cfg, stage, seed=0)
  return _updates[key]


def curve(cfg: config.ModelConfig, stage: config.StageConfig,
          shape: tuple[int, int, int], steps: list[types.Batch]):
  """(losses of the updates on a mesh of `shape`, final state)."""
  where = mesh(shape)
  with jax.set_mesh(where):
    state = step.init_state(encoder.init_params(cfg, jax.random.key(1)), stage,
                            model=cfg)
    update, losses = _update(cfg, stage), []
    for batch in steps:
      state, metrics = update(state, sharding.to_global(where, batch))
      losses.append(float(metrics['train/loss']))
  return np.array(losses), state


def tpu_kernels(mesh: jax.sharding.Mesh, model: config.ModelConfig) -> set[str]:
  """Names of the Pallas kernels in the program of an update of 4,096 pairs."""
  stage = config.StageConfig(data=config.DataConfig(
      batch_size=4096, query_lengths=(8,), passage_lengths=(8,)))
  with jax.set_mesh(mesh):
    params = sharding.abstract(encoder.param_shapes(model), mesh)
    text = step.make_update(model, stage, seed=0).lower(
        step.abstract_state(params, stage, mesh, model),
        plan.largest_batch(stage, mesh)).as_text()
  return set(re.findall(r'@tpu_custom_call.*?kernel_name = "(\w+)"', text))
