"""Every family agrees with transformers (torch) on random checkpoints."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxembed.convert import from_hf, parity_families, tables
from jaxembed.convert.families import FAMILIES
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.models import encoder, presets
from tests.helpers.tiers import thorough

# By default: norms behind and before, positions learned, relative and turned, windows,
# fused matrices.
_FIRST = ('BERT', 'ModernBERT', 'EmbeddingGemma', 'Mistral, sliding window', 'Phi-3')

_EACH = pytest.mark.parametrize('name', [
    c[0] if c[0] in _FIRST else thorough(c[0]) for c in parity_families.CASES])

_ODD = (None, True, False, 0, 1, -1, 2.0, 0.5, 1e30, 10**12, 10**400, '', 'x',
        'x' * 5000, [], ['x'], [None], {}, {'rope_type': 'x'},
        {'rope_type': ['yarn']}, [[[]]])
_OLDER_KEYS = ('rope_theta', 'rope_scaling', 'rope_local_base_freq', 'layer_types',
               'global_rope_theta', 'global_attn_every_n_layers', 'max_window_layers',
               'sliding_window_pattern', 'partial_rotary_factor', 'embedding_size')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  pytest.importorskip('transformers')
  pytest.importorskip('torch')
  built = {}

  def build(name):
    if name not in built:
      _, model_type, fields = next(c for c in parity_families.CASES if c[0] == name)
      built[name] = tmp_path_factory.mktemp('model')
      parity_families.build(built[name], model_type, fields)
    return built[name]

  return build


@_EACH
def test_last_hidden_state_matches_torch(checkpoint, name):
  lines = list(parity_families.compare(name, checkpoint(name)))
  assert len(lines) in (2, 4)
  for line in lines:
    assert line.difference <= parity_families.TOLERANCE, line


@_EACH
def test_tensors_go_back_bit_for_bit(checkpoint, name):
  from safetensors.numpy import load_file

  folder = checkpoint(name)
  loaded = from_hf.load(folder)
  table = tables.backbone_table(loaded.cfg.backbone)
  written = tables.to_hf(loaded.params, loaded.cfg)
  original = {k: v for k, v in load_file(folder / 'model.safetensors').items()
              if not k.startswith('pooler.')}
  assert set(written) == set(original)
  for key, value in original.items():
    assert written[key].dtype == value.dtype
    assert written[key].tobytes() == value.tobytes(), key
  assert all('{l}' in row.name or row.name in written for row in table.rows)


@_EACH
def test_config_round_trip(name):
  transformers = pytest.importorskip('transformers')
  _, model_type, fields = next(c for c in parity_families.CASES if c[0] == name)
  hf = transformers.AutoConfig.for_model(model_type, **fields).to_dict()
  cfg = tables.config_from_hf(hf)
  mode = tables.attention_from_hf(hf)
  written = tables.config_to_hf(cfg, mode)
  assert tables.config_from_hf(written) == cfg
  assert tables.attention_from_hf(written) == mode
  # And transformers reads what we write as the same model.
  again = transformers.AutoConfig.for_model(**written).to_dict()
  assert tables.config_from_hf(again) == cfg


@pytest.mark.parametrize('family', [
    name if name in ('bert', 'gemma3_text', 'mistral') else thorough(name)
    for name, family in sorted(FAMILIES.items()) if family.architecture])
def test_a_key_left_out_means_what_transformers_takes(family):
  """Or it is refused: sizes have no value that would be a guess worth making."""
  transformers = pytest.importorskip('transformers')
  fields = {'qwen2': {'use_sliding_window': True}}.get(family, {})
  whole = transformers.AutoConfig.for_model(family, **fields).to_dict()
  cfg, read = tables.config_from_hf(whole), 0
  for key in set(whole) - {'model_type', *fields}:
    try:
      bare = tables.config_from_hf({k: v for k, v in whole.items() if k != key})
    except UnsupportedModel as e:
      assert f'lacks {key!r}' in str(e)
      continue
    assert bare == cfg, key
    read += 1
  assert read > 5


# static is described by its tensors, not by a config.json of anybody's.
@pytest.mark.parametrize('family', sorted(set(FAMILIES) - {'static'}))
def test_any_value_of_a_key_is_read_or_refused_in_one_sentence(family):
  whole = tables.config_to_hf(presets.tiny(family)) | dict.fromkeys(_OLDER_KEYS)
  refused = 0
  for key, value in itertools.product(whole, _ODD):
    try:
      tables.config_from_hf(whole | {key: value})
    except UnsupportedModel as e:
      assert '\n' not in str(e) and len(str(e)) < 1000
      refused += 1
  assert refused > 100


def test_a_family_has_features_and_a_conversion():
  assert sorted(FAMILIES) == sorted(presets.FEATURES)


@pytest.mark.parametrize('family', sorted(presets.FEATURES))
def test_preset_is_the_tree_of_its_table(family):
  cfg = dataclasses.replace(presets.get('tiny_bert'), backbone=presets.tiny(family))
  shapes = tables.flatten(encoder.param_shapes(cfg))
  named = {p for row in tables.backbone_table(cfg.backbone).rows for p in row.paths}
  assert named == set(shapes)


def test_longrope_picks_factors_by_each_rows_own_length(checkpoint):
  """32 is the original length: the short row does not notice a long neighbour."""
  loaded = from_hf.load(checkpoint('Phi-3, longrope'))
  run = jax.jit(encoder.hidden_states, static_argnums=1)
  both = parity_families.ragged(99, 'right', length=48)
  alone = jax.tree.map(lambda x: x[1:2], both)
  short = np.asarray(run(loaded.params, loaded.cfg, alone))
  mixed = np.asarray(run(loaded.params, loaded.cfg, both))
  np.testing.assert_allclose(short[0, 0], mixed[1, 0], atol=1e-6 * abs(short).max())
