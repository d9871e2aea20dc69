"""Published recipes: each builds its model and traces a step of every stage."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jaxembed import config, types
from jaxembed.models import encoder, presets
from jaxembed.train import optim, start, step

ROOT = pathlib.Path(__file__).parents[1]
# The shape of each recipe's source, its parameters in millions (adapters and head
# included), how many of them move, and the passages per step of each stage.
RECIPES = {
    'nv_embed_v1': ('mistral_7b', 7893, 782, (1024, 1024)),
    'nv_embed_v2': ('mistral_7b', 7893, 782, (1024, 1024)),
    'e5_mistral': ('mistral_7b', 7153, 42, (4096,)),
    'qwen3_embedding_0p6b': ('qwen3_0p6b', 596, 596, (8192, 16384)),
    'bge_base': ('bert_base', 109, 109, (32768, 4096)),
}


def _load(name):
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config.validate(module.get_config())


def _tokens(rows, length):
  return types.Tokens(*(jax.ShapeDtypeStruct((rows, length), t)
                        for t in (jnp.int32, bool, bool)))


def _batch(data):
  queries, passages = data.batch_size, data.batch_size * (1 + data.num_negatives)
  row = lambda n, dtype: jax.ShapeDtypeStruct((n,), dtype)
  return types.PairBatch(
      _tokens(queries, data.query_lengths[-1]),
      _tokens(passages, data.passage_lengths[-1]),
      types.Pairing(
          owner=row(passages, jnp.int32), is_positive=row(passages, bool),
          query_id=row(queries, jnp.int32), passage_id=row(passages, jnp.int32),
          group=row(queries, jnp.int32), in_batch=row(queries, bool)))


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name):
  preset, millions, moving, passages = RECIPES[name]
  cfg = _load(name)
  model = start.apply_spec(presets.get(preset), cfg.model)
  params = encoder.param_shapes(model)
  sizes = [x.size for x in jax.tree.leaves(params)]
  moves = jax.tree.leaves(optim.trainable(params, cfg.stages[0].optim))
  assert round(sum(sizes) / 1e6) == millions
  assert round(sum(n for n, m in zip(sizes, moves) if m) / 1e6) == moving
  assert tuple(s.data.batch_size * (1 + s.data.num_negatives)
               for s in cfg.stages) == passages
  for stage in cfg.stages:
    loss, _ = jax.eval_shape(
        lambda p, b, s=stage: step.loss_and_metrics(p, b, model, s, jax.random.key(0)),
        params, _batch(stage.data))
    assert loss.shape == () and loss.dtype == jnp.float32
