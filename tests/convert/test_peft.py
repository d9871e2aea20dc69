"""Adapters travel to PEFT and back; PEFT computes the same vectors."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jaxembed import config, sharding
from jaxembed.config import LoraConfig
from jaxembed.convert import from_hf, parity_families, peft, tables
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.models import encoder, lora
from jaxembed.train import optim
from tests.helpers.tiers import after, thorough

states = jax.jit(encoder.hidden_states, static_argnums=1)


def _base(folder, name):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  _, model_type, fields = next(c for c in parity_families.CASES if c[0] == name)
  parity_families.build(folder, model_type, fields)
  return from_hf.load(folder)


@pytest.fixture(scope='module')
def mistral(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mistral')
  return folder, _base(folder, 'Mistral')


def _train(loaded, targets, steps=20):
  cfg = dataclasses.replace(loaded.cfg, lora=LoraConfig(
      rank=3, alpha=5.0, targets=targets))
  params = lora.add(loaded.params, cfg.lora, jax.random.key(0))
  tokens = parity_families.ragged(99, 'right', rows=6)
  mask = optim.trainable(params, config.OptimConfig())
  optimiser = optax.multi_transform(
      {True: optax.adam(2e-2), False: optax.set_to_zero()}, mask)

  @jax.jit
  def step(params, state):
    def loss(p):
      v = encoder.encode(p, cfg, tokens)
      return jnp.sum(v[:3] * v[3:])

    updates, state = optimiser.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  state = optimiser.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params, cfg


@pytest.mark.parametrize(('name', 'targets'), [
    ('Mistral', r'attn/[qkvo]$|mlp/(gate|up|down)$'),
    thorough('BERT', r'attn/q$|mlp/down$')])
def test_a_trained_adapter_gives_the_same_states_in_peft(tmp_path, name, targets):
  library = pytest.importorskip('peft')
  import torch
  import transformers

  base = tmp_path / 'base'
  loaded = _base(base, name)
  params, cfg = _train(loaded, targets)
  peft.write(tmp_path / 'adapter', params, cfg, str(base))
  tokens = parity_families.ragged(99, 'right')
  ours = np.asarray(states(params, cfg, tokens))
  merged, plain = lora.merge(params, cfg)
  model = library.PeftModel.from_pretrained(
      transformers.AutoModel.from_pretrained(base), tmp_path / 'adapter').eval()

  def theirs(model):
    with torch.no_grad():
      return model(input_ids=torch.tensor(tokens.ids).long(),
                   attention_mask=torch.tensor(tokens.mask).long()
                   ).last_hidden_state.numpy()

  real, scale = tokens.mask, np.abs(ours).max()
  unadapted = np.asarray(states(loaded.params, loaded.cfg, tokens))
  assert np.abs(ours - unadapted)[real].max() > 0.05 * scale  # training did something
  for other in (theirs(model), theirs(model.merge_and_unload()),
                 np.asarray(states(merged, plain, tokens))):
    assert np.abs(ours - other)[real].max() <= 1e-5 * scale


def test_round_trip_is_exact(mistral, tmp_path):
  _, loaded = mistral
  params, cfg = _train(loaded, r'attn/[qv]$', steps=2)
  peft.write(tmp_path / 'adapter', params, cfg)
  again, read = peft.read(tmp_path / 'adapter', loaded.params, loaded.cfg)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert (read.lora.rank, read.lora.alpha) == (3, 5.0)
  assert lora.targets(again, read.lora.targets) == lora.targets(
      params, cfg.lora.targets)


def test_an_adapter_folder_loads_with_its_base(mistral, tmp_path):
  base, loaded = mistral
  params, cfg = _train(loaded, r'attn/[qv]$', steps=2)
  peft.write(tmp_path / 'adapter', params, cfg, str(base))
  mesh = sharding.make_mesh((2, 2, 2))
  for where in (None, mesh):
    again = from_hf.load(tmp_path / 'adapter', mesh=where)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert again.cfg.lora.rank == 3 and again.folder == base
  assert again.params['backbone']['layers']['attn']['q']['lora_a'].sharding.mesh == mesh
  assert again.tokenizer_folder == base
  words = tmp_path / 'words'
  words.mkdir()
  (words / 'tokenizer.json').write_text('{}')
  peft.write(tmp_path / 'spoken', params, cfg, str(base), words)
  again = from_hf.load(tmp_path / 'spoken')
  assert again.tokenizer_folder == tmp_path / 'spoken' and again.folder == base
  peft.write(tmp_path / 'orphan', params, cfg)
  with pytest.raises(BadCheckpoint, match='names no base model'):
    from_hf.load(tmp_path / 'orphan')


def test_peft_adapters_of_fused_matrices_are_read(tmp_path):
  """Phi-3 holds q, k and v in one matrix: its one A serves all three."""
  library = pytest.importorskip('peft')
  import torch
  import transformers

  base = tmp_path / 'base'
  loaded = _base(base, 'Phi-3')
  model = library.get_peft_model(
      transformers.AutoModel.from_pretrained(base),
      library.LoraConfig(r=4, lora_alpha=8, target_modules=['qkv_proj', 'down_proj'],
                         init_lora_weights=False)).eval()
  model.save_pretrained(tmp_path / 'adapter')
  params, cfg = peft.read(tmp_path / 'adapter', loaded.params, loaded.cfg)
  tokens = parity_families.ragged(99, 'right')
  with torch.no_grad():
    theirs = model(input_ids=torch.tensor(tokens.ids).long(),
                   attention_mask=torch.tensor(tokens.mask).long()
                   ).last_hidden_state.numpy()
  ours = np.asarray(states(params, cfg, tokens))
  assert np.abs(ours - theirs)[tokens.mask].max() <= 1e-5 * np.abs(theirs).max()
  with pytest.raises(ValueError, match='merge the adapters instead'):
    peft.write(tmp_path / 'again', params, cfg)


_QV = {'target_modules': ['q_proj', 'v_proj']}


@pytest.mark.parametrize(('base', 'settings'), [
    # Ranks and scales by module, biases, and modules saved whole, in one.
    ('Llama, biases', _QV | {
        'rank_pattern': {'q_proj': 2, r'layers\.1\.self_attn.v_proj': 3},
        'alpha_pattern': {'^layers.0.self_attn.v_proj': 32}, 'bias': 'all',
        'modules_to_save': ['norm', 'embed_tokens', 'down_proj']}),
    thorough('Phi-3', {'target_modules': ['qkv_proj', 'down_proj'], 'use_dora': True}),
    thorough('Llama, biases', _QV | {'use_rslora': True, 'rank_pattern': {
        r'layers\.(0|1)\..*q_proj': 2}}),
    thorough('Llama, biases', _QV | {'lora_bias': True}),
    thorough('Llama, biases', _QV | {'bias': 'lora_only'}),
    thorough('Llama, biases', _QV | {'trainable_token_indices': [3, 1]}),
    thorough('Llama, biases', {'target_modules': ['q_proj', 'embed_tokens']}),
    thorough('Llama, biases', _QV | {'layers_to_transform': [1],
                                     'layers_pattern': 'layers'}),
    thorough('BERT', {'target_modules': ['query'], 'modules_to_save': ['LayerNorm']})])
def test_more_than_one_update_of_one_scale_is_merged_as_peft_does(
    tmp_path, base, settings):
  library = pytest.importorskip('peft')
  import torch
  import transformers

  loaded = _base(tmp_path / 'base', base)
  torch.manual_seed(1)
  model = library.get_peft_model(
      transformers.AutoModel.from_pretrained(tmp_path / 'base'),
      library.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **settings))
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(torch.randn_like(p) * 0.05)
  model.save_pretrained(tmp_path / 'adapter')
  want = model.merge_and_unload().state_dict()
  with pytest.warns(UserWarning, match='it was merged into its base'):
    params, cfg = peft.read(tmp_path / 'adapter', loaded.params, loaded.cfg)
  assert cfg == loaded.cfg
  before, after = (tables.to_hf(p, cfg) for p in (loaded.params, params))
  assert any((before[name] != after[name]).any() for name in after)
  for name, ours in after.items():
    theirs = want[name].numpy()
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), name
  with pytest.warns(UserWarning, match='merged'):  # the shapes alone
    shapes, _ = peft.read(tmp_path / 'adapter', jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loaded.params), loaded.cfg)
  assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_one_of_several_adapters_is_chosen_by_its_folder(
    adapter, tmp_path, monkeypatch):
  folder = tmp_path / 'both'
  for name in ('a', 'b'):
    shutil.copytree(adapter, folder / name)
  with pytest.raises(BadCheckpoint, match='several adapters.*: a, b; open one'):
    from_hf.load(folder)
  import huggingface_hub

  asked = []
  monkeypatch.setattr(huggingface_hub, 'snapshot_download',
                      lambda repo, **_: asked.append(repo) or str(folder))
  for source in (folder / 'b', 'org/name/b'):
    jax.tree.map(np.testing.assert_array_equal, from_hf.load(source).params,
                 from_hf.load(adapter).params)
  with pytest.raises(FileNotFoundError, match="org/name has no folder 'c'"):
    from_hf.load('org/name/c')
  assert asked == ['org/name'] * 2
  shutil.copytree(adapter, folder, dirs_exist_ok=True)
  with pytest.warns(UserWarning, match='its own adapter is read; beside it lie a, b'):
    from_hf.load(folder, weights=False)


def test_an_adapter_beside_a_whole_model_is_refused(adapter, mistral, tmp_path):
  folder = tmp_path / 'both'
  shutil.copytree(adapter, folder)
  shutil.copy(mistral[0] / 'config.json', folder)  # of the base: it changes nothing
  jax.tree.map(np.testing.assert_array_equal, from_hf.load(folder).params,
               from_hf.load(adapter).params)
  shutil.copy(mistral[0] / 'model.safetensors', folder)
  with pytest.raises(BadCheckpoint, match='both a model .* and an adapter'):
    from_hf.load(folder)


def test_an_adapter_in_the_folder_of_a_module(adapter, tmp_path):
  """sentence-transformers may keep its Transformer module in a folder of its own."""
  folder = tmp_path / 'whole'
  shutil.copytree(adapter, folder / '0_Transformer')
  (folder / '1_Pooling').mkdir()
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(
      {'word_embedding_dimension': 32, 'pooling_mode_cls_token': True,
       'pooling_mode_mean_tokens': False}))
  kind = 'sentence_transformers.models.'
  (folder / 'modules.json').write_text(json.dumps([
      {'idx': i, 'name': str(i), 'path': path, 'type': kind + path[2:]}
      for i, path in enumerate(('0_Transformer', '1_Pooling'))]))
  found, want = from_hf.load(folder), from_hf.load(adapter)
  assert found.cfg.pooling.kind == 'cls' and found.cfg.lora == want.cfg.lora
  assert not found.is_plain
  jax.tree.map(np.testing.assert_array_equal, found.params, want.params)


def test_an_adapter_of_another_model_is_refused(mistral, tmp_path):
  _, loaded = mistral
  params, cfg = _train(loaded, r'attn/q$', steps=1)
  peft.write(tmp_path / 'adapter', params, cfg)
  other = dataclasses.replace(loaded.cfg, backbone=dataclasses.replace(
      loaded.cfg.backbone, num_layers=2))
  with pytest.raises(BadCheckpoint, match=r'layers.2.self_attn.q_proj.lora_A.weight '
                     'fits no module'):
    peft.read(tmp_path / 'adapter', loaded.params, other)
  file = tmp_path / 'adapter' / peft.CONFIG
  data = json.loads(file.read_text())
  file.write_text(json.dumps(data | {'r': 5}))
  with pytest.raises(BadCheckpoint, match=r'wants A \[5, 32\]'):
    peft.read(tmp_path / 'adapter', loaded.params, loaded.cfg)
  file.write_text(json.dumps(data | {'use_dora': True}))
  with pytest.raises(BadCheckpoint, match='q_proj lacks its lora_magnitude_vector'):
    peft.read(tmp_path / 'adapter', loaded.params, loaded.cfg)
  weights = load_file(tmp_path / 'adapter' / peft.WEIGHTS)
  save_file(weights | {
      name.replace('.lora_', '.lora_embedding_').removesuffix('.weight'): x
      for name, x in weights.items()}, tmp_path / 'adapter' / peft.WEIGHTS)
  with pytest.raises(BadCheckpoint, match='q_proj has updates of two kinds'):
    peft.read(tmp_path / 'adapter', loaded.params, loaded.cfg)


@pytest.fixture(scope='module')
def adapter(mistral, tmp_path_factory):
  """An adapter as it should be, with its base."""
  base, loaded = mistral
  params, cfg = _train(loaded, r'attn/q$', steps=1)
  folder = tmp_path_factory.mktemp('adapters') / 'fine'
  peft.write(folder, params, cfg, str(base))
  return folder


def _edited(adapter, tmp_path, **fields):
  shutil.copytree(adapter, tmp_path / 'adapter')
  file = tmp_path / 'adapter' / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  return tmp_path / 'adapter'


@pytest.mark.parametrize(('key', 'value'), after(14, [
    *(('r', v) for v in (0, -1, '2', 10**12, 2.0, [2], True)),
    *(('lora_alpha', v) for v in ('4', [1], -4, 0, 10**400)),
    ('lora_dropout', 'x'), ('lora_dropout', 2), ('use_rslora', 'yes'),
    ('init_lora_weights', 'pissa'), ('init_lora_weights', 'pissa_niter_4'),
    ('init_lora_weights', 'olora'), ('init_lora_weights', 'corda'),
    ('init_lora_weights', 'loftq'), ('init_lora_weights', 'lora_ga'),
    ('peft_type', 'LOHA'), ('peft_type', ['LORA']), ('use_dora', 'yes'),
    ('rank_pattern', {'q': 0}), ('rank_pattern', {'(q+)+$': 4}),
    ('rank_pattern', ['q']),
    ('rank_pattern', {'q(': 4}), ('alpha_pattern', {'q': -4}),
    ('alpha_pattern', {'.*.*.*q': 4}), ('trainable_token_indices', [-1]),
    ('target_parameters', ['w']), ('fan_in_fan_out', True), ('revision', 'v2'),
    ('a_key_of_tomorrow', 1), ('modules_to_save', ['norm'])]))
def test_settings_that_mean_other_numbers_are_refused(adapter, tmp_path, key, value):
  with pytest.raises(ValueError, match=f'{peft.CONFIG}.*{key}'):
    from_hf.load(_edited(adapter, tmp_path, **{key: value}))


def test_a_listed_module_without_its_update_is_refused(adapter, tmp_path):
  """Unless the settings say which layers have one."""
  folder = _edited(adapter, tmp_path, target_modules=['q_proj'])
  whole = from_hf.load(folder).params
  tensors = load_file(folder / peft.WEIGHTS)
  save_file({k: v for k, v in tensors.items() if '.1.' not in k}, folder / peft.WEIGHTS)
  with pytest.raises(BadCheckpoint, match="lists 'q_proj' in target_modules, but .* no "
                     r'update of layers\.1\.self_attn\.q_proj'):
    from_hf.load(folder)
  file = folder / peft.CONFIG
  layers = len(whole['backbone']['layers']['attn_norm']['scale'])
  file.write_text(json.dumps(json.loads(file.read_text()) | {
      'layers_to_transform': [i for i in range(layers) if i != 1]}))
  with pytest.warns(UserWarning, match='merged into its base'):
    from_hf.load(folder)
  file.write_text(json.dumps(json.loads(file.read_text()) | {
      'target_modules': ['q_proj', 'v_proj'], 'layers_to_transform': None}))
  save_file(tensors, folder / peft.WEIGHTS)
  with pytest.raises(BadCheckpoint, match="lists 'v_proj'"):
    from_hf.load(folder)


@pytest.mark.parametrize(('key', 'value'), [
    ('init_lora_weights', 'gaussian'), ('modules_to_save', []), ('use_dora', None),
    ('modules_to_save', ['classifier', 'score']),
    ('bias', 'lora_only'), ('rank_pattern', {}),
    ('auto_mapping', {'base_model_class': 'system', 'parent_library': 'os'}),
    ('target_modules', '(a+)+' * 20 + '$')])
def test_settings_that_change_nothing_pass(adapter, tmp_path, key, value):
  wanted = from_hf.load(adapter)
  found = from_hf.load(_edited(adapter, tmp_path, **{key: value}))
  assert found.cfg == wanted.cfg
  jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


@pytest.mark.parametrize('name', after(4, [
    5, ['x'], '', 'a\0b', 'a' * 10**6, 'package:', 'package:json', '.', '/', '../..']))
def test_bases_that_are_refused(adapter, tmp_path, monkeypatch, name):
  folder = _edited(adapter, tmp_path, base_model_name_or_path=name)
  monkeypatch.chdir(folder)
  with pytest.raises((ValueError, FileNotFoundError)) as e:
    from_hf.load(folder)
  assert len(str(e.value)) < 500


def test_a_base_beside_the_adapter_is_found(adapter, mistral, tmp_path):
  folder = _edited(adapter, tmp_path, base_model_name_or_path='../base')
  (tmp_path / 'base').symlink_to(mistral[0])
  assert from_hf.load(folder).cfg == from_hf.load(adapter).cfg


def test_a_package_within_a_package_is_not_looked_for(adapter, tmp_path, monkeypatch):
  """To find `outer.inner`, Python runs the code of `outer`."""
  folder = _edited(adapter, tmp_path, base_model_name_or_path='package:outer.inner/x')
  (folder / 'outer').mkdir()
  (folder / 'outer' / '__init__.py').write_text('raise SystemExit("code ran")')
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  with pytest.raises(BadCheckpoint, match='refused'):
    from_hf.load(folder)
  for place in ('outer.inner/x', '.outer', '..', 'json/../..', 'json//etc'):
    with pytest.raises((FileNotFoundError, BadCheckpoint)):
      from_hf.load(f'package:{place}')


def test_adapters_that_are_not_finite_are_refused(adapter, tmp_path):
  folder = _edited(adapter, tmp_path)
  weights = load_file(folder / peft.WEIGHTS)
  weights[sorted(weights)[-1]][0, 0] = np.nan
  save_file(weights, folder / peft.WEIGHTS)
  with pytest.raises(BadCheckpoint, match='holds NaN or Inf'):
    from_hf.load(folder)
  (folder / peft.WEIGHTS).rename(folder / 'adapter_model.bin')
  with pytest.raises(BadCheckpoint, match='pickled adapter'):
    from_hf.load(folder)
