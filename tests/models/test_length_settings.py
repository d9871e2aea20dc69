"""Length methods as settings: refused, written, kept by runs, told elsewhere."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxembed import bundle, checkpoint, config, sharding
from jaxembed.config import LengthConfig, ModelConfig, RopeScaling
from jaxembed.config.length import METHODS, parse
from jaxembed.embedder import Embedder
from jaxembed.models import length, presets
from jaxembed.similarity import unit
from jaxembed.train import arguments, start
from tests.helpers import longer, tiny_run
from tests.helpers.longer import T


@pytest.mark.parametrize('family,options,message', [
    ('bert', dict(method='ntk'), "'ntk' changes rotary positions.*choose interpolate"),
    ('mpnet', dict(method='self_extend'), 'rotary positions'),
    ('mistral', dict(method='grouped'), 'for tables.*choose self_extend'),
    ('bert', dict(method='interpolate', target=40), 'no multiple of 16'),
    ('bert', dict(method='grouped', original=32), 'more than the 16 positions'),
    ('bert', dict(method='grouped', target=16), 'not more than the 16 tokens'),
    ('mistral', dict(method='self_extend', group=2, window=4),
     'fewer than 64 tokens; choose group=6'),
    ('mistral', dict(method='self_extend', window=16), 'window 16 is not less')])
def test_what_a_family_cannot_take_is_refused(family, options, message):
  cfg, _ = longer.model(family)
  with pytest.raises(ValueError, match=message):
    length.configure(cfg, LengthConfig(**{'target': T} | options))


def test_a_second_method_and_stretched_frequencies_are_refused():
  cfg, _ = longer.extended('mistral', 'ntk')
  assert length.configure(cfg, LengthConfig(method='ntk', target=T)) == cfg
  with pytest.raises(ValueError, match="length method 'ntk' already"):
    length.configure(cfg, LengthConfig(method='self_extend', target=T))
  llama = ModelConfig(backbone=dataclasses.replace(
      presets.tiny('mistral'), rope_scaling=RopeScaling(kind='llama3', factor=8.0)))
  with pytest.raises(ValueError, match='by llama3 already; choose self_extend'):
    length.configure(llama, LengthConfig(method='yarn', target=2**17))


@pytest.mark.parametrize('options,message', [
    (dict(method='ntk', group=4), 'group is 4, which .*ntk.* does not read'),
    (dict(method='theta'), 'theta is 0.0; give the rotary base'),
    (dict(method='none'), 'method is'), (dict(method='rope'), 'choose one of none'),
    (dict(method='ntk', original=T), 'target is 64; give more than')])
def test_settings_that_mean_nothing_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    LengthConfig(target=T, **options)


def test_a_method_is_written_and_read():
  cfg, _ = longer.extended('mistral', 'self_extend', temperature=True)
  assert config.from_dict(ModelConfig, config.to_dict(cfg)) == cfg
  assert parse('self_extend:target=64,window=4,temperature=true') == LengthConfig(
      method='self_extend', target=64, window=4, temperature=True)
  for text, message in (('ntk', 'says no target'), ('ntk:64', "'64' is no setting"),
                        ('ntk:target=a', 'target=a is no whole number')):
    with pytest.raises(ValueError, match=message):
      parse(text)


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'none'])
def test_other_libraries_are_told_or_the_export_is_refused(method):
  table = method in ('grouped', 'recurrent', 'windows')
  cfg, _ = longer.extended('bert' if table else 'mistral', method)
  if table or method in ('self_extend', 'clex', 'dynamic_ntk'):
    with pytest.raises(ValueError, match=f"'{method}' has no place"):
      length.exported(cfg)
    return
  told = length.exported(cfg)
  assert told.length is None and told.backbone.max_positions == T
  for n in (9, 40):
    np.testing.assert_array_equal(longer.rule(told, n).freqs, longer.rule(cfg, n).freqs)


@pytest.mark.thorough
def test_a_run_keeps_its_method(tiny, tmp_path):
  """From an experiment's field to what is opened of its folder."""
  wanted = LengthConfig(method='interpolate', target=256)
  spec = config.ModelSpec(source=str(tiny), length=wanted)
  assert any("'interpolate'; the source reads 64" in line
             for line in start.changes(spec))
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  model = start.start(spec, 0, mesh)
  bundle.save_model(tmp_path, model)
  checkpoint.save_params(tmp_path / 'checkpoints', 1, model.params)
  found = Embedder.load(tmp_path)
  assert found.max_seq_length == 256 and found.cfg.length == LengthConfig(
      method='interpolate', target=256, original=64, texts='long')
  text = 'a cat and a dog ' * 12  # fits the source
  plain = Embedder.load(tiny, length=None)
  np.testing.assert_allclose(found.encode(text), plain.encode(text), atol=2e-6)
  assert found.vector_fingerprint() != plain.vector_fingerprint()
  asked = arguments.experiment(arguments.Arguments(
      model=Embedder.load(tiny, length=wanted), data=[('a', 'b'), ('c', 'd')]))
  assert asked.cfg.model.length == found.cfg.length
  with pytest.raises(ValueError, match="'interpolate' with texts='long' has no place"):
    found.save(tmp_path / 'export')
  assert not (tmp_path / 'export').exists()


@pytest.mark.thorough
@pytest.mark.parametrize('family,method,options', [
    ('bert', 'interpolate', {'texts': 'all'}), ('llama', 'yarn', {}),
    ('llama', 'ntk', {}), ('llama', 'dprope', {}), ('llama', 'interpolate', {})])
def test_an_export_is_the_same_in_torch(family, method, options, minilm, tmp_path):
  st = pytest.importorskip('sentence_transformers')
  (tmp_path / 'plain').mkdir()
  folder = tiny_run.write_model(tmp_path / 'plain', minilm, family)
  ours = Embedder.load(folder, length=LengthConfig(
      method=method, target=256, **options))
  ours.save(tmp_path / 'export')
  theirs = st.SentenceTransformer(str(tmp_path / 'export'), device='cpu')
  texts = ['cats and dogs ' * 80, 'a cat ' * 40, 'a']
  np.testing.assert_allclose(unit(ours.encode(texts)), unit(theirs.encode(texts)),
                             atol=1e-5)
  again = Embedder.load(tmp_path / 'export')
  np.testing.assert_allclose(ours.encode(texts), again.encode(texts), atol=2e-6)
  plain = Embedder.load(folder)
  if family == 'llama':
    plain.max_seq_length = 256
    assert np.abs(plain.encode(texts[0]) - ours.encode(texts[0])).max() > 1e-4
