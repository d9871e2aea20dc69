"""float32 is float32: no product of a float32 model is left to the platform."""

import dataclasses
import re

import jax
from jax.experimental import topologies
import pytest

from jaxembed import config, sharding
from jaxembed.models import encoder, presets
from jaxembed.train import step
from tests.helpers import tiny_step
from tests.helpers.tiers import after

CHUNKED = dataclasses.replace(tiny_step.STAGE, token_budget=24)
MUON = dataclasses.replace(tiny_step.STAGE, optim=config.OptimConfig(
    name='muon', peak_lr=1e-3, warmup_steps=2))
OWN = dataclasses.replace(tiny_step.STAGE, loss=config.LossConfig(negatives='own'))
MODELS = {
    'chunks of a folded head': (tiny_step.model('latent_attention'), CHUNKED),
    'adapters': (tiny_step.model(lora=config.LoraConfig(rank=2, dropout=0.1)),
                 tiny_step.STAGE),
    'a head over layers': (tiny_step.model('layer_attention', remat='full'), OWN),
    'muon': (tiny_step.model('weighted_mean'), MUON),
    'a projection': (dataclasses.replace(
        tiny_step.model(), backbone=presets.tiny('mpnet'),
        dense=(config.DenseConfig(features=6),)), tiny_step.STAGE),
}


def tpu():
  pytest.importorskip('libtpu', reason='libtpu (the test extra) is not installed')
  return topologies.get_topology_desc(
      platform='tpu', topology_name='v5e:2x2').devices[0]


def products(model, stage, device):
  """(types of the operands, their precisions) of each product of a training step."""
  mesh = sharding.make_mesh((1, 1, 1), [device])
  shapes, rows = encoder.param_shapes(model), jax.NamedSharding(
      mesh, jax.P(sharding.BATCH))
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows),
                       tiny_step.batches(1)[0])
  with jax.set_mesh(mesh):
    state = step.abstract_state(sharding.abstract(shapes, mesh), stage, mesh)
    text = step.make_update(model, stage, seed=0).lower(state, batch).as_text()
  found = []
  for line in re.findall(r'stablehlo\.(?:dot_general|convolution|dot)\b.*', text):
    operands = re.findall(r'tensor<[^>]*?(\w+)>', line.partition(' : (')[2])[:2]
    stated = re.search(r'precision = \[([^\]]*)\]', line)
    found.append((operands, stated[1].split(', ') if stated else ['DEFAULT'] * 2))
  assert len(found) > 20
  return found


@pytest.mark.parametrize('name', after(1, MODELS))
def test_every_float32_product_says_its_precision(name):
  for operands, stated in products(*MODELS[name], tpu()):
    if 'f32' in operands:
      assert stated == ['HIGHEST'] * 2, (operands, stated)


def test_a_faster_precision_can_be_asked_for():
  model = dataclasses.replace(tiny_step.model(), precision='high')
  stated = {p for _, both in products(model, tiny_step.STAGE, jax.devices()[0])
            for p in both}
  assert stated == {'HIGH', 'HIGHEST'}  # the loss's own products stay exact
  with pytest.raises(ValueError, match='precision'):
    dataclasses.replace(model, precision='tf32')


@pytest.mark.thorough
def test_sixteen_bits_take_one_pass():
  model = tiny_step.model('latent_attention', dtype='bfloat16')
  for operands, stated in products(model, CHUNKED, jax.devices()[0]):
    if operands == ['bf16', 'bf16']:
      assert stated == ['DEFAULT'] * 2


def test_gradients_taken_outside_are_as_precise():
  """A rule of differentiation is traced after `encode` has returned."""
  model = tiny_step.model('latent_attention')
  params = encoder.param_shapes(model)
  tokens = tiny_step.batches(1)[0].query
  text = jax.jit(jax.grad(lambda p: encoder.encode(p, model, tokens).sum())).lower(
      params).as_text()
  assert 'precision = [HIGHEST, HIGHEST]' in text
  for line in re.findall(r'stablehlo\.dot_general.*', text):
    assert 'precision = [HIGHEST, HIGHEST]' in line, line
