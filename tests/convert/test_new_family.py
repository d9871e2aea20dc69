"""A family that the library lacks is added by its record and its row of features."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxembed import bundle
from jaxembed.convert import exporters, from_hf, tables
from jaxembed.convert.families import FAMILIES
from jaxembed.models import presets
from jaxembed.train import loop
from tests.helpers import tiny_run

transformers = pytest.importorskip('transformers')
pytest.importorskip('sentence_transformers')


class ScratchConfig(transformers.MistralConfig):
  model_type = 'scratch'


class ScratchModel(transformers.MistralModel):
  config_class = ScratchConfig


@pytest.fixture
def scratch(monkeypatch):
  """A model_type known through the public tables alone, here and in transformers."""
  from transformers.models.auto import configuration_auto, modeling_auto

  monkeypatch.setitem(FAMILIES, 'scratch', dataclasses.replace(
      FAMILIES['mistral'], architecture='ScratchModel'))
  monkeypatch.setitem(presets.FEATURES, 'scratch', presets.FEATURES['mistral'])
  monkeypatch.setitem(configuration_auto.CONFIG_MAPPING._extra_content,
                      'scratch', ScratchConfig)
  monkeypatch.setitem(modeling_auto.MODEL_MAPPING._extra_content,
                      ScratchConfig, ScratchModel)


@pytest.mark.thorough
@pytest.mark.usefixtures('scratch')
def test_it_loads_trains_leaves_and_comes_back(tmp_path, minilm):
  source = tmp_path / 'model'
  source.mkdir()
  tiny_run.write_model(source, minilm, 'scratch')
  before = tables.flatten(from_hf.load(source).params)
  rows = tiny_run.write_rows(tmp_path / 'rows.jsonl')
  loop.train(tiny_run.experiment(source, rows, steps=2), tmp_path / 'run')
  trained = bundle.open(tmp_path / 'run')
  assert trained.cfg.backbone.family == 'scratch'
  after = tables.flatten(trained.params)
  assert all((np.asarray(after[path]) != x).any() for path, x in before.items()
             if path.endswith('kernel'))
  exporters.export(trained, tmp_path / 'out')  # torch computes the same vectors
  again = from_hf.load(tmp_path / 'out')
  assert again.cfg.backbone == trained.cfg.backbone
  assert again.cfg.attention == trained.cfg.attention == 'bidirectional'
  jax.tree.map(np.testing.assert_array_equal, again.params['backbone'],
               trained.params['backbone'])
