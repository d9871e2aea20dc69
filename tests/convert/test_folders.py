"""Folders that sentence-transformers itself writes: the same vectors, or a refusal.

Each number draws a family, a tokenizer, poolings, modules behind them in some order,
a layout, a padding side, a dtype and a prompt. The reference computes every text on
its own, so that padding has no part in it.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.embedder import Embedder
from jaxembed.models import encoder
from tests.helpers.folders import (
    FAMILIES,
    LENGTH,
    TEXTS,
    WIDTH,
    backbone,
    byte_pairs,
    edit,
    words,
)
from tests.helpers.tiers import after, thorough

st = pytest.importorskip('sentence_transformers')
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

_PROMPT = 'Find the capital: '
_encode = jax.jit(encoder.encode, static_argnums=1)
_MODES = ('cls', 'max', 'mean', 'mean_sqrt_len_tokens', 'weightedmean', 'lasttoken')
_OLD = 'sentence_transformers.models.'


def _pick(rng, options):
  return options[int(rng.integers(len(options)))]


def _modules(rng, width):
  from sentence_transformers.base.modules import Dense, Normalize
  from sentence_transformers.sentence_transformer.modules import LayerNorm

  out = []
  for _ in range(int(rng.integers(0, 4))):
    if rng.random() < 0.5:
      out.append(Normalize())
      continue
    if rng.random() < 0.2:
      out.append(LayerNorm(width))
      for p in out[-1].parameters():
        p.data += 0.1 * torch.randn_like(p)
      continue
    features = _pick(rng, (width, 12))
    out.append(Dense(width, features, bias=bool(rng.random() < 0.5),
                     activation_function=_pick(rng, (
                         torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(),
                         torch.nn.ReLU(), torch.nn.SiLU(), torch.nn.LeakyReLU())),
                     use_residual=bool(rng.random() < 0.5)))
    width = features
  return out


def _folder(tmp_path, number):
  """The folder, and how texts are encoded."""
  from sentence_transformers.base.modules import Transformer
  from sentence_transformers.sentence_transformer.modules import Pooling

  rng = np.random.default_rng(number)
  family = _pick(rng, tuple(FAMILIES))
  make = words if family in ('bert', 'mpnet') else byte_pairs
  single = _pick(rng, ('<s> $A </s>', '$A </s>', '<s> $A'))
  tokenizer = make(single, padding_side=_pick(rng, ('left', 'right')),
                   truncation_side=_pick(rng, ('left', 'right', 'right')),
                   model_max_length=LENGTH)
  dtype = _pick(rng, ('float32', 'float32', 'float16', 'bfloat16'))
  base = backbone(tmp_path / 'base', family, tokenizer, number, dtype)
  modes = tuple(dict.fromkeys(
      _pick(rng, _MODES) for _ in range(int(rng.integers(1, 3)))))
  exclude = bool(rng.random() < 0.3)
  first = Transformer(str(base), model_kwargs={'dtype': torch.float32})
  pooling = Pooling(WIDTH, modes, include_prompt=not exclude)
  torch.manual_seed(number)
  later = _modules(rng, WIDTH * len(modes))
  folder = tmp_path / 'model'
  st.SentenceTransformer(modules=[first, pooling, *later], device='cpu').save(
      str(folder))
  settings = {}
  if rng.random() < 0.5:
    settings = {'max_seq_length': 16}
    _legacy(folder, modes, exclude)
  if rng.random() < 0.3:
    settings['do_lower_case'] = True
  edit(folder / 'sentence_bert_config.json', **settings)
  return folder, _pick(rng, ('', _PROMPT))


def _legacy(folder, modes, exclude):
  """Rewrites the files as the releases before 5.4 had them."""
  entries = json.loads((folder / 'modules.json').read_text())
  for entry in entries:
    entry['type'] = _OLD + entry['type'].rpartition('.')[2]
  (folder / 'modules.json').write_text(json.dumps(entries))
  (folder / 'sentence_bert_config.json').write_text('{}')
  if list(modes) == sorted(modes, key=_MODES.index):
    keys = {'cls': 'cls_token', 'max': 'max_tokens', 'mean': 'mean_tokens',
            'weightedmean': 'weightedmean_tokens'}
    (folder / '1_Pooling/config.json').write_text(json.dumps({
        'word_embedding_dimension': WIDTH, 'include_prompt': not exclude,
        **{f'pooling_mode_{keys.get(m, m)}': m in modes for m in _MODES}}))


def _reference(folder, texts, prompt='', normalize=False, **options):
  model = st.SentenceTransformer(str(folder), device='cpu', local_files_only=True,
                                 model_kwargs={'dtype': torch.float32}, **options)
  return model.encode(texts, prompt=prompt, batch_size=1, show_progress_bar=False,
                      normalize_embeddings=normalize)


def _ours(folder, texts, prompt=''):
  model = bundle.open(folder)
  tokenizer = model.load_tokenizer()
  ragged = tokenizer.encode(texts, prompt, max_length=model.cfg.max_length)
  tokens = tokenizer.pad(ragged, 2 * LENGTH)
  return np.asarray(_encode(model.params, model.cfg, tokens))


def _agree(folder, texts, prompt=''):
  want, got = _reference(folder, texts, prompt), _ours(folder, texts, prompt)
  assert got.shape == want.shape
  # Two layers and a few dense ones in float32: a few ulp (6e-8) of the largest value.
  assert np.abs(got - want).max() <= 1e-6 * max(np.abs(want).max(), 1.0)


@pytest.mark.parametrize('number', after(4, range(72)))
def test_vectors_are_those_of_sentence_transformers(tmp_path, number):
  folder, prompt = _folder(tmp_path, number)
  _agree(folder, TEXTS, prompt)


@pytest.mark.thorough
def test_an_export_is_compared_with_its_source_in_torch(tmp_path):
  """By what sentence-transformers reads, not by our reading of the same files."""
  from jaxembed.convert import exporters, parity

  folder, _ = _folder(tmp_path, 3)
  model = bundle.open(folder)
  report = exporters.export(model, tmp_path / 'out')
  assert report['source']['compared'] and report['source']['max_difference'] <= 1e-6
  other = 'cls' if 'max' in model.cfg.pooling.modes else 'max'
  wrong = dataclasses.replace(model.cfg, dense=(), normalize=False,
                              pooling=config.PoolingConfig(kind=other))
  with pytest.raises(parity.Mismatch, match='its source .* differ in torch'):
    params = {'backbone': model.params['backbone']}
    exporters.export(dataclasses.replace(model, params=params, cfg=wrong),
                     tmp_path / 'wrong')
  assert not (tmp_path / 'wrong').exists()


def _plain(tmp_path, family='qwen2', architectures=None, **fields):
  folder = backbone(tmp_path / family, family, byte_pairs('$A </s>'), 0)
  if architectures:
    edit(folder / 'config.json', architectures=[architectures], **fields)
  return folder


@pytest.mark.filterwarnings('ignore:.*has no modules.json')
@pytest.mark.parametrize(('family', 'architectures', 'fields'), [
    ('qwen2', None, {}), ('qwen2', 'Qwen2ForCausalLM', {}),
    ('qwen2', 'Qwen2ForCausalLM', {'is_causal': False}), ('roberta', None, {})])
def test_plain_folders(tmp_path, family, architectures, fields):
  """The pooling of sentence-transformers, and vectors of length 1."""
  folder = _plain(tmp_path, family, architectures, **fields)
  want, got = _reference(folder, TEXTS, normalize=True), _ours(folder, TEXTS)
  assert np.abs(got - want).max() <= 1e-6


@pytest.mark.thorough
def test_a_plain_folder_says_what_nobody_has(tmp_path):
  """Its settings are not read without modules.json, here as there."""
  folder = _plain(tmp_path)
  edit(folder / 'config_sentence_transformers.json', truncate_dim=8,
       prompts={'query': 'find: '}, default_prompt_name='query')
  with pytest.warns(UserWarning, match='no modules.json.*: the mean of them.*length 1; '
                    'its config_sentence_transformers.json is not read'):
    model = Embedder.load(folder)
  np.testing.assert_allclose(
      model.encode(TEXTS), _reference(folder, TEXTS, None, normalize=True), atol=1e-6)
  out = tmp_path / 'out'
  model.save(out)
  last = json.loads((out / 'modules.json').read_text())[-1]
  assert last['type'].endswith('Normalize')
  _agree(out, TEXTS)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """One BERT with a Dense layer, whose files the tests below change in copies."""
  from sentence_transformers.base.modules import Dense, Transformer
  from sentence_transformers.sentence_transformer.modules import Pooling

  root = tmp_path_factory.mktemp('one')
  first = Transformer(str(backbone(root / 'base', 'bert', words('<s> $A </s>'), 0)))
  st.SentenceTransformer(modules=[first, Pooling(WIDTH, 'mean'), Dense(WIDTH, 8)],
                         device='cpu').save(str(root / 'model'))
  return root / 'model'


def _copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / 'copy')


def _module(folder, kind):
  entries = json.loads((folder / 'modules.json').read_text())
  return next(folder / e['path'] for e in entries if e['type'].endswith(kind))


@pytest.mark.parametrize(('file', 'fields', 'message'), [
    ('sentence_bert_config.json', {'query_length': 8}, 'query_length=8'),
    ('sentence_bert_config.json', {'document_length': 8}, 'document_length=8'),
    ('sentence_bert_config.json', {'query_expansion': {'length': 8}}, 'expansion'),
    ('sentence_bert_config.json', {'transformer_task': 'fill-mask'}, 'fill-mask'),
    ('sentence_bert_config.json', {'processing_kwargs': {'text': {'max_length': 9}}},
     'processing_kwargs'),
    ('sentence_bert_config.json', {'tokenizer_args': {'do_lower_case': True}},
     'tokenizer_args.do_lower_case=True.*tokenizer_config.json'),
    ('sentence_bert_config.json', {'model_args': {'is_decoder': True}},
     'model_args.is_decoder=True'),
    ('sentence_bert_config.json', {'config_args': {'is_causal': False}},
     'config_args.is_causal=False.*config.json'),
    ('sentence_bert_config.json', {'surprise': 1}, 'surprise=1'),
    ('config_sentence_transformers.json', {'model_type': 'SparseEncoder'},
     'SparseEncoder'),
    ('tokenizer_config.json', {'added_tokens_decoder': {'9999': {'content': '<new>'}}},
     'added_tokens_decoder'),
    ('Pooling', {'pooling_mode': 'median'}, 'pooling_mode'),
    ('Pooling', {'surprise': True}, 'surprise=True'),
    ('Dense', {'module_input_name': 'token_embeddings'}, 'module_input_name'),
    ('Dense', {'activation_function': 'torch.nn.modules.activation.PReLU'}, 'PReLU'),
    ('Dense', {'surprise': True}, 'surprise=True')])
def test_keys_that_would_change_the_vectors_are_named(folder, tmp_path, file, fields,
                                                      message):
  copy = _copy(folder, tmp_path)
  path = copy / file if '.json' in file else _module(copy, file) / 'config.json'
  edit(path, **fields)
  with pytest.raises(ValueError, match=message):
    bundle.open(copy, weights=False).load_tokenizer()


@pytest.mark.parametrize(('file', 'key'), [
    ('config.json', 'AutoModel'), ('tokenizer_config.json', 'AutoTokenizer')])
def test_code_of_a_folder_is_told_of(folder, tmp_path, file, key):
  copy = _copy(folder, tmp_path)
  edit(copy / file, auto_map={key: 'mine.Class'})
  with pytest.warns(UserWarning, match=f'auto_map.{key}.*never run'):
    bundle.open(copy, weights=False).load_tokenizer()


@pytest.mark.parametrize(('types', 'message'), [
    (['Transformer', 'Dense', 'Pooling'], 'Dense stands before Pooling'),
    (['Transformer', 'Pooling', 'Pooling'], 'exactly one has to pool'),
    (['Transformer', 'Pooling', 'WeightedLayerPooling'], 'stands behind Pooling'),
    (['BoW'], 'does not begin with .*models.BoW.*not computed'),
    (['WordEmbeddings', 'CNN', 'Pooling'], 'begin with .*WordEmbeddings'),
    (['Transformer', 'CNN', 'Pooling'], 'CNN. is not supported'),
    (['Transformer', 'LSTM', 'Pooling'], 'LSTM. is not supported'),
    (['Transformer', 'Pooling', '!mine.Normalize'], 'mine.Normalize.*never run')])
def test_modules_that_are_not_computed_are_named(folder, tmp_path, types, message):
  copy = _copy(folder, tmp_path)
  (copy / 'modules.json').write_text(json.dumps([
      {'idx': i, 'name': str(i), 'path': '' if i == 0 else f'{i}_{t}'.replace('!', ''),
       'type': t[1:] if t.startswith('!') else _OLD + t}
      for i, t in enumerate(types)]))
  for i, t in enumerate(types[1:], 1):
    (copy / f'{i}_{t}'.replace('!', '')).mkdir(exist_ok=True)
  with pytest.raises(UnsupportedModel, match=message):
    bundle.open(copy, weights=False)


def test_harmless_keys_change_nothing(folder, tmp_path):
  copy = _copy(folder, tmp_path)
  edit(copy / 'sentence_bert_config.json', unpad_inputs=False, query_length=None,
       model_args={'attn_implementation': 'sdpa', 'torch_dtype': 'float32'})
  edit(copy / 'tokenizer_config.json', legacy=False, chat_template='{{ x }}')
  want, got = (bundle.open(f) for f in (folder, copy))
  assert want.cfg == got.cfg
  texts = [m.load_tokenizer().encode(TEXTS, max_length=16).ids for m in (want, got)]
  np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ({'use_bidirectional_attention': True}, 'is_causal: false')])
def test_keys_that_transformers_reads_otherwise_are_refused(tmp_path, fields, message):
  folder = _plain(tmp_path)
  edit(folder / 'config.json', **fields)
  with pytest.raises(UnsupportedModel, match=message):
    bundle.open(folder, weights=False)


def test_a_rotary_model_reads_beyond_its_positions_if_its_author_says(tmp_path):
  from sentence_transformers.base.modules import Transformer
  from sentence_transformers.sentence_transformer.modules import Pooling

  first = Transformer(str(_plain(tmp_path)))
  st.SentenceTransformer(modules=[first, Pooling(WIDTH, 'mean')],
                         device='cpu').save(str(tmp_path / 'model'))
  edit(tmp_path / 'model/sentence_bert_config.json', max_seq_length=100)
  model = bundle.open(tmp_path / 'model')
  text = [TEXTS[3] * 4]
  ragged = model.load_tokenizer().encode(text, max_length=model.cfg.max_length)
  assert ragged.lengths[0] == 100 > model.cfg.backbone.max_positions
  got = np.asarray(_encode(model.params, model.cfg,
                           model.load_tokenizer().pad(ragged, 100)))
  want = _reference(tmp_path / 'model', text)
  assert np.abs(got - want).max() <= 1e-6 * max(np.abs(want).max(), 1.0)


def test_two_modules_of_one_name_are_refused(folder, tmp_path):
  copy = _copy(folder, tmp_path)
  entries = json.loads((copy / 'modules.json').read_text())
  (copy / 'modules.json').write_text(json.dumps([e | {'name': 'x'} for e in entries]))
  with pytest.raises(UnsupportedModel, match="the name 'x'.*keeps one"):
    bundle.open(copy, weights=False)


def test_short_names_of_activations_and_default_prompts_of_every_model(folder,
                                                                      tmp_path):
  copy = _copy(folder, tmp_path)
  edit(_module(copy, 'Dense') / 'config.json', activation_function='torch.nn.GELU')
  edit(copy / 'config_sentence_transformers.json', default_prompt_name='document')
  _agree(copy, TEXTS)


_TORCH = ('CELU', 'ReLU6', 'RReLU', 'Hardsigmoid', 'Hardswish', 'Hardtanh',
          'LogSigmoid', 'Tanhshrink', 'Softshrink', 'Hardshrink', 'Softmax', 'Softmin',
          'LogSoftmax', 'Mish', 'SELU', 'ELU', 'Softplus', 'Softsign', 'Sigmoid')


def test_every_activation_of_torch_without_parameters():
  from jaxembed.convert import head_modules
  from jaxembed.models import after_pooling

  x = np.linspace(-4, 4, 60, dtype=np.float32).reshape(5, 12)
  names = {path.rpartition('.')[2]: ours
           for ours, path in head_modules.ACTIVATIONS.items()}
  assert sorted(names.values()) == sorted(config.model.DENSE_ACTIVATIONS)
  kernel = {'kernel': np.eye(12, dtype=np.float32)}
  got = jax.jit(lambda x: {name: after_pooling.apply(
      kernel, config.DenseConfig(features=12, bias=False, activation=names[name]), x)
                           for name in _TORCH})(x)
  for name in _TORCH:
    want = getattr(torch.nn, name)().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got[name], want, atol=1e-6, err_msg=name)


def _weighted(tmp_path, family, mode):
  from sentence_transformers.base.modules import Transformer
  from sentence_transformers.sentence_transformer.modules import (
    Pooling,
    WeightedLayerPooling,
  )

  base = backbone(tmp_path / 'base', family, byte_pairs('<s> $A </s>'), 0)
  first = Transformer(str(base), config_kwargs={'output_hidden_states': True})
  middle = WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1)
  middle.layer_weights.data = torch.tensor([0.7, 1.8])
  st.SentenceTransformer(modules=[first, middle, Pooling(WIDTH, mode)],
                         device='cpu').save(str(tmp_path / 'model'))
  return tmp_path / 'model'


@pytest.mark.parametrize(('family', 'mode'), [
    ('bert', 'mean'), thorough('qwen2', 'lasttoken'), thorough('modernbert', 'cls')])
def test_a_weighted_mean_of_layers(tmp_path, family, mode):
  """Poolings are linear in the states, so that pooled layers are averaged here."""
  from jaxembed.convert import exporters

  folder = _weighted(tmp_path, family, mode)
  _agree(folder, TEXTS)
  exporters.export(bundle.open(folder), tmp_path / 'out')
  _agree(tmp_path / 'out', TEXTS)


def test_a_mean_of_layers_that_is_not_computed_is_named(tmp_path):
  folder = _weighted(tmp_path, 'bert', 'max')
  with pytest.raises(UnsupportedModel, match='the mode max behind WeightedLayerPool'):
    bundle.open(folder, weights=False)
  edit(_module(folder, 'WeightedLayerPooling') / 'config.json', layer_start=0)
  with pytest.raises(UnsupportedModel, match='layer_start=0 .* model of 2 layers'):
    bundle.open(folder, weights=False)
