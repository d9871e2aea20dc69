"""NV-Embed: golden arrays of the publisher's code, and its files byte for byte."""

import dataclasses
import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxembed.convert import from_hf, nv_embed, tables, tensor_files
from jaxembed.data.tokenise import Tokenizer
from jaxembed.embedder import Embedder
from jaxembed.kernels.latent_pool import reference
from jaxembed.models import encoder, presets
from jaxembed.types import Tokens

_states = jax.jit(encoder.hidden_states, static_argnums=1)
_encode = jax.jit(encoder.encode, static_argnums=1)
_head = jax.jit(reference.tokens)


@pytest.fixture(scope='module')
def released(shared_fixtures):
  return shared_fixtures / 'nv_embed_tiny'


@pytest.fixture(scope='module')
def loaded(released):
  return from_hf.load(released)


def _sha(file: pathlib.Path) -> str:
  return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize('case', range(4))
def test_tokens_states_and_embeddings_are_golden(released, loaded, case):
  golden = {k.split('/')[1]: v for k, v in
            load_file(released / 'golden.safetensors').items()
            if k.startswith(f'{case}/')}
  spec = json.loads((released / 'cases.json').read_text())[case]
  tokenizer = Tokenizer.load(released, prompt_pooling='nv_embed',
                             eos_text=nv_embed.EOS_TEXT)
  ragged = tokenizer.encode(spec['texts'], spec['instruction'],
                            max_length=spec['max_length'])
  tokens = tokenizer.pad(ragged, golden['input_ids'].shape[1])
  np.testing.assert_array_equal(tokens.ids, golden['input_ids'])
  np.testing.assert_array_equal(tokens.mask, golden['attention_mask'])
  np.testing.assert_array_equal(tokens.pool, golden['pool_mask'])
  states = _states(loaded.params, loaded.cfg, tokens)
  head = _head(loaded.params['pooling'], states)
  vectors = _encode(loaded.params, loaded.cfg, tokens)
  # 1e-5 is what the golden arrays, float32 themselves, are good for.
  for name, ours in (('hidden', states), ('latent_tokens', head)):
    theirs = golden[name][tokens.mask]
    difference = np.abs(np.asarray(ours)[tokens.mask] - theirs).max()
    assert difference <= 1e-5 * max(1, np.abs(theirs).max()), name
  np.testing.assert_allclose(vectors, golden['embeddings'], atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_written_back_byte_for_byte(released, tmp_path, dtype):
  loaded = from_hf.load(released, dtype=dtype)
  target = tmp_path / 'out'
  nv_embed.write(target, loaded.params, loaded.cfg, loaded.folder)
  for file in released.iterdir():
    if file.name not in ('golden.safetensors', 'cases.json'):
      assert _sha(target / file.name) == _sha(file), file.name


def test_shards_hold_the_same_tensors(released, loaded, tmp_path):
  target = tmp_path / 'out'
  nv_embed.write(target, loaded.params, loaded.cfg, loaded.folder, limit=500_000)
  files = sorted(p.name for p in target.glob('*.safetensors'))
  assert files[0].startswith('model-00001-of-') and len(files) > 1
  original = load_file(released / 'model.safetensors')
  written = {k: v for f in files for k, v in load_file(target / f).items()}
  assert {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in written.items()} == {
      k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in original.items()}
  again = from_hf.load(target)
  jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_full_size_layout_without_weights():
  """304 tensors, four files: names, boundaries and sizes of the released v2."""
  shards = nv_embed.plan(presets.get('nv_embed'))
  assert list(shards) == [f'model-0000{i}-of-00004.safetensors' for i in (1, 2, 3, 4)]
  assert [len(s) for s in shards.values()] == [83, 100, 106, 15]
  headers = [tensor_files.header_bytes(s) for s in shards.values()]
  assert [len(h) - 8 for h in headers] == [10456, 12528, 13312, 1840]
  sizes = [len(h) + sum(2 * int(np.prod(shape)) for _, shape in s.values())
           for h, s in zip(headers, shards.values())]
  assert sizes == [4997761248, 4915917048, 4999820296, 788571960]
  where = {name: i for i, s in enumerate(shards.values()) for name in s}
  for i, (layer, first) in enumerate(
      [(7, 'mlp.up_proj'), (18, 'mlp.down_proj'), (30, 'mlp.gate_proj')]):
    assert where[f'embedding_model.layers.{layer}.{first}.weight'] == i + 1
  index = json.loads(nv_embed.index(shards))
  assert index['metadata'] == {'total_size': 15702032384}
  assert len(index['weight_map']) == 304


def test_a_config_of_our_own_reads_back(loaded):
  hf = json.loads(json.dumps(nv_embed.config_to_hf(loaded.cfg)))
  assert nv_embed.config_from_hf(hf) == loaded.cfg


def test_only_its_own_kind_is_written(tmp_path):
  cfg = presets.get('tiny_mistral')
  with pytest.raises(ValueError, match='mistral with mean'):
    nv_embed.write(tmp_path / 'x', {}, cfg)
  assert not (tmp_path / 'x').exists()


def test_another_end_of_texts_is_not_written(loaded, tmp_path):
  cfg = dataclasses.replace(loaded.cfg, eos_text='')
  with pytest.raises(ValueError, match="'</s>' behind every text itself"):
    nv_embed.write(tmp_path / 'x', loaded.params, cfg)
  assert not (tmp_path / 'x').exists()


def test_values_that_float16_cannot_hold_are_named(loaded, tmp_path):
  flat = dict(tables.flatten(loaded.params))
  flat['backbone/norm/scale'] = flat['backbone/norm/scale'].at[0].set(1e6)
  with pytest.raises(ValueError, match=r'embedding_model.norm.weight has values'):
    nv_embed.write(tmp_path / 'x', tables.unflatten(flat), loaded.cfg)


def test_long_texts_are_seen_whole(loaded):
  """The window of 4096 in text_config is not applied; here it is made short."""
  assert loaded.cfg.backbone.window == 0
  ids = np.arange(3, 43, dtype=np.int32)[None]
  ones = np.ones((1, 40), bool)
  moved = ids.copy()
  moved[0, -1] += 1
  x, y = (_states(loaded.params, loaded.cfg, Tokens(i, ones, ones))
          for i in (ids, moved))
  assert np.abs(np.asarray(x - y))[0, 0].max() > 1e-6


def test_the_embedder_knows_its_rules(released):
  """Texts in, the publisher's vectors out: EOS, instruction and padding included."""
  golden = load_file(released / 'golden.safetensors')
  spec = json.loads((released / 'cases.json').read_text())[0]
  model = Embedder.load(released)
  vectors = model.encode(spec['texts'], prompt=spec['instruction'])
  np.testing.assert_allclose(vectors, golden['0/embeddings'], atol=1e-5)
