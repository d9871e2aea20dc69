"""A model cut in depth or width computes what the large one does on the way."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.convert import exporters, to_sentence_transformers
from jaxembed.embedder import Embedder
from jaxembed.models import after_pooling, encoder, presets
from jaxembed.reshaping import cut
from tests.helpers import tiny_run

TEXTS = ['what is number 3', 'a', 'three is nine and no more']


@pytest.fixture(scope='module')
def model(tiny):
  return bundle.open(tiny)


def _states(model, tokens, layer):
  """Unit means of transformers' own token states behind a layer."""
  states = model(**tokens, output_hidden_states=True).hidden_states[layer]
  mask = tokens['attention_mask'][..., None]
  pooled = (states * mask).sum(1) / mask.sum(1)
  return (pooled / pooled.norm(dim=-1, keepdim=True)).detach().numpy()


def test_layers_that_are_left_are_those_of_the_large_model(model, tmp_path):
  transformers = pytest.importorskip('transformers')
  read = transformers.AutoTokenizer.from_pretrained(model.original)
  tokens = read(TEXTS, padding=True, return_tensors='pt')
  wanted = _states(transformers.AutoModel.from_pretrained(model.original), tokens, 2)
  small = cut.layers(model, [0, 1])
  np.testing.assert_allclose(Embedder(small).encode(TEXTS), wanted, atol=1e-5)
  # The config.json that lies beside it has three layers; what is written has two.
  to_sentence_transformers.write(tmp_path / 'out', small)
  written = transformers.AutoModel.from_pretrained(tmp_path / 'out')
  assert len(written.encoder.layer) == 2
  np.testing.assert_allclose(_states(written, tokens, -1), wanted, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize('family', ['bert', 'modernbert', 'gemma3_text', 'qwen3'])
def test_a_cut_model_is_exported_as_what_it_is(family, tmp_path, minilm):
  st = pytest.importorskip('sentence_transformers')
  (tmp_path / 'model').mkdir()
  large = bundle.open(tiny_run.write_model(tmp_path / 'model', minilm, family))
  small = cut.width(cut.layers(large, [0, 2]), 8)
  exporters.export(small, tmp_path / 'out')
  theirs = st.SentenceTransformer(str(tmp_path / 'out'), device='cpu').encode(TEXTS)
  assert theirs.shape == (len(TEXTS), 8)
  np.testing.assert_allclose(Embedder(small).encode(TEXTS), theirs, atol=1e-5)


@pytest.mark.parametrize('dense', [
    (), (config.DenseConfig(features=12, activation='tanh'),),
    (config.DenseConfig(features=12), config.DenseConfig(features=12, residual=True)),
    (config.DenseConfig(features=20, residual=True),)])
def test_a_shorter_vector_is_the_beginning_of_the_long_one(dense):
  cfg = config.ModelConfig(backbone=presets.tiny('bert', num_layers=1), dense=dense)
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32),
                        encoder.param_shapes(cfg))
  model = bundle.Bundle(params=params, cfg=cfg)
  small = cut.width(model, 5)
  v = np.random.default_rng(0).normal(size=(4, cfg.backbone.dim)).astype(np.float32)

  def through(m):
    x = v
    for i, layer in enumerate(m.cfg.dense):
      x = np.asarray(after_pooling.apply(m.params['dense'][str(i)], layer, x))
    return x

  np.testing.assert_allclose(through(small), through(model)[:, :5], rtol=1e-5,
                             atol=1e-5)


def test_layers_keep_what_is_said_of_each_of_them():
  cfg = config.ModelConfig(backbone=presets.tiny('gemma3_text'))
  model = bundle.Bundle(params=encoder.param_shapes(cfg), cfg=cfg)
  params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), model.params)
  small = cut.layers(dataclasses.replace(model, params=params), [1, 2])
  assert small.cfg.backbone.windowed_layers == (True, False)
  modern = config.ModelConfig(backbone=presets.tiny('modernbert'))
  with pytest.raises(ValueError, match='layer 0 of modernbert lacks'):
    cut.layers(bundle.Bundle(params=encoder.param_shapes(modern), cfg=modern), [1, 2])
  for wrong in ([], [2, 1], [0, 3], [-1]):
    with pytest.raises(ValueError, match='must be some of 0 to 2'):
      cut.layers(model, wrong)
  with pytest.raises(ValueError, match='must be 1 to 31'):
    cut.width(model, 32)
