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
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from jaxembed import bundle, config, data
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.models import encoder
from tests.helpers.tiers import after

st = pytest.importorskip('sentence_transformers')
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

_TEXTS = ['The cat sat on the mat.', 'a', 'Stocks FELL sharply on Monday </s> <pad>',
          'Paris is the capital of France, and Rome of Italy; ' * 3,
          'hello [UNK] world']
_PROMPT = 'Find the capital: '
_WIDTH, _LENGTH = 32, 24
_encode = jax.jit(encoder.encode, static_argnums=1)
_MODES = ('cls', 'max', 'mean', 'mean_sqrt_len_tokens', 'weightedmean', 'lasttoken')
_FAMILIES = {
    'bert': {}, 'roberta': {'type_vocab_size': 1}, 'mpnet': {}, 'xlm-roberta': {},
    'modernbert': {'local_attention': 8}, 'mistral': {'sliding_window': 6},
    'qwen2': {}, 'gemma3_text': {'head_dim': 16, 'sliding_window': 6}, 'llama': {}}
_OLD = 'sentence_transformers.models.'


def _words(single: str, **settings):
  """A lower-casing word-piece tokenizer, as BERT has."""
  fast = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  fast.normalizer = normalizers.BertNormalizer(lowercase=True)
  fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  fast.train_from_iterator(_TEXTS * 3, trainers.WordPieceTrainer(
      vocab_size=300, special_tokens=['[PAD]', '[UNK]', '<s>', '</s>'],
      show_progress=False))
  return _wrapped(fast, single, pad_token='[PAD]', unk_token='[UNK]', **settings)


def _bytes(single: str, **settings):
  """A cased byte-level tokenizer, as RoBERTa and decoders have."""
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  fast.train_from_iterator(_TEXTS * 3, trainers.BpeTrainer(
      vocab_size=400, special_tokens=['<s>', '<pad>', '</s>', '<unk>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  return _wrapped(fast, single, pad_token='<pad>', unk_token='<unk>', **settings)


def _wrapped(fast, single, **settings):
  names = [t for t in ('<s>', '</s>') if t in single]
  if names:
    fast.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(t, fast.token_to_id(t)) for t in names])
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=fast, bos_token='<s>', eos_token='</s>', **settings)


def _pick(rng, options):
  return options[int(rng.integers(len(options)))]


def _backbone(folder, family, tokenizer, seed, dtype='float32', **fields):
  torch.manual_seed(seed)
  sizes = {'vocab_size': len(tokenizer), 'hidden_size': _WIDTH, 'num_hidden_layers': 2,
           'intermediate_size': 48, 'num_attention_heads': 4,
           'max_position_embeddings': 64, 'pad_token_id': tokenizer.pad_token_id}
  if family in ('mistral', 'qwen2', 'gemma3_text', 'llama'):
    sizes['num_key_value_heads'] = 2
  model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(
      family, **sizes, **_FAMILIES[family], **fields))
  with torch.no_grad():
    for p in model.parameters():
      p.add_(torch.randn_like(p) * 0.1)
  model.to(getattr(torch, dtype)).save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder


def _modules(rng, width):
  from sentence_transformers.base.modules import Dense, Normalize

  out = []
  for _ in range(int(rng.integers(0, 4))):
    if rng.random() < 0.5:
      out.append(Normalize())
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
  family = _pick(rng, tuple(_FAMILIES))
  make = _words if family in ('bert', 'mpnet') else _bytes
  single = _pick(rng, ('<s> $A </s>', '$A </s>', '<s> $A'))
  tokenizer = make(single, padding_side=_pick(rng, ('left', 'right')),
                   truncation_side=_pick(rng, ('left', 'right', 'right')),
                   model_max_length=_LENGTH)
  dtype = _pick(rng, ('float32', 'float32', 'float16', 'bfloat16'))
  base = _backbone(tmp_path / 'base', family, tokenizer, number, dtype)
  modes = tuple(dict.fromkeys(
      _pick(rng, _MODES) for _ in range(int(rng.integers(1, 3)))))
  exclude = bool(rng.random() < 0.3)
  first = Transformer(str(base), model_kwargs={'dtype': torch.float32})
  pooling = Pooling(_WIDTH, modes, include_prompt=not exclude)
  torch.manual_seed(number)
  later = _modules(rng, _WIDTH * len(modes))
  folder = tmp_path / 'model'
  st.SentenceTransformer(modules=[first, pooling, *later], device='cpu').save(
      str(folder))
  settings = {}
  if rng.random() < 0.5:
    settings = {'max_seq_length': 16}
    _legacy(folder, modes, exclude)
  if rng.random() < 0.3:
    settings['do_lower_case'] = True
  _edit(folder / 'sentence_bert_config.json', **settings)
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
        'word_embedding_dimension': _WIDTH, 'include_prompt': not exclude,
        **{f'pooling_mode_{keys.get(m, m)}': m in modes for m in _MODES}}))


def _edit(file, **fields):
  data = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(data | fields))


def _reference(folder, texts, prompt='', **options):
  model = st.SentenceTransformer(str(folder), device='cpu', local_files_only=True,
                                 model_kwargs={'dtype': torch.float32}, **options)
  return model.encode(texts, prompt=prompt, batch_size=1, show_progress_bar=False)


def _ours(folder, texts, prompt=''):
  model = bundle.open(folder)
  tokenizer = model.load_tokenizer()
  ragged = tokenizer.encode(texts, prompt, max_length=model.cfg.max_length)
  tokens = tokenizer.pad(ragged, 2 * _LENGTH)
  return np.asarray(_encode(model.params, model.cfg, tokens))


def _agree(folder, texts, prompt=''):
  want, got = _reference(folder, texts, prompt), _ours(folder, texts, prompt)
  assert got.shape == want.shape
  # Two layers and a few dense ones in float32: a few ulp (6e-8) of the largest value.
  assert np.abs(got - want).max() <= 1e-6 * max(np.abs(want).max(), 1.0)


@pytest.mark.parametrize('number', after(4, range(72)))
def test_vectors_are_those_of_sentence_transformers(tmp_path, number):
  folder, prompt = _folder(tmp_path, number)
  _agree(folder, _TEXTS, prompt)


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
  folder = _backbone(tmp_path / family, family, _bytes('$A </s>'), 0)
  if architectures:
    _edit(folder / 'config.json', architectures=[architectures], **fields)
  return folder


@pytest.mark.filterwarnings('ignore:.*has no modules.json')
@pytest.mark.parametrize(('family', 'architectures', 'fields'), [
    ('qwen2', None, {}), ('qwen2', 'Qwen2ForCausalLM', {}),
    ('qwen2', 'Qwen2ForCausalLM', {'is_causal': False}), ('roberta', None, {})])
def test_plain_folders(tmp_path, family, architectures, fields):
  _agree(_plain(tmp_path, family, architectures, **fields), _TEXTS)


def test_a_plain_decoder_says_how_it_pools(tmp_path):
  with pytest.warns(UserWarning, match='no modules.json.*takes the mean'):
    bundle.open(_plain(tmp_path), weights=False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """One BERT with a Dense layer, whose files the tests below change in copies."""
  from sentence_transformers.base.modules import Dense, Transformer
  from sentence_transformers.sentence_transformer.modules import Pooling

  root = tmp_path_factory.mktemp('one')
  first = Transformer(str(_backbone(root / 'base', 'bert', _words('<s> $A </s>'), 0)))
  st.SentenceTransformer(modules=[first, Pooling(_WIDTH, 'mean'), Dense(_WIDTH, 8)],
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
  _edit(path, **fields)
  with pytest.raises(ValueError, match=message):
    bundle.open(copy, weights=False).load_tokenizer()


@pytest.mark.parametrize(('file', 'key'), [
    ('config.json', 'AutoModel'), ('tokenizer_config.json', 'AutoTokenizer')])
def test_code_of_a_folder_is_told_of(folder, tmp_path, file, key):
  copy = _copy(folder, tmp_path)
  _edit(copy / file, auto_map={key: 'mine.Class'})
  with pytest.warns(UserWarning, match=f'auto_map.{key}.*never run'):
    bundle.open(copy, weights=False).load_tokenizer()


@pytest.mark.parametrize(('types', 'message'), [
    (['Transformer', 'Dense', 'Pooling'], 'Dense stands before Pooling'),
    (['Transformer', 'Pooling', 'Pooling'], 'exactly one has to pool'),
    (['Transformer', 'WeightedLayerPooling', 'Pooling'], 'WeightedLayerPooling'),
    (['Router', 'Pooling'], 'does not begin with a Transformer'),
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
  _edit(copy / 'sentence_bert_config.json', unpad_inputs=False, query_length=None,
        model_args={'attn_implementation': 'sdpa', 'torch_dtype': 'float32'})
  _edit(copy / 'tokenizer_config.json', legacy=False, chat_template='{{ x }}')
  want, got = (bundle.open(f) for f in (folder, copy))
  assert want.cfg == got.cfg
  texts = [m.load_tokenizer().encode(_TEXTS, max_length=16).ids for m in (want, got)]
  np.testing.assert_array_equal(*texts)


_TOKEN = {'content': '[WORLD]', 'lstrip': False, 'rstrip': False, 'special': True,
          'normalized': False, 'single_word': False}


@pytest.mark.parametrize('settings', [
    {'split_special_tokens': True},
    {'cls_token': 'hello'},  # a word becomes a special token
    {'mask_token': '[WORLD]'}, {'extra_special_tokens': ['[WORLD]']},
    {'added_tokens_decoder': _TOKEN}, {'added_tokens.json': True}])
def test_settings_of_the_tokenizer_are_applied(tmp_path, settings):
  folder = _backbone(tmp_path / 'plain', 'bert', _words('<s> $A </s>'), 0)
  size = transformers.AutoTokenizer.from_pretrained(folder).vocab_size
  if settings.pop('added_tokens.json', False):
    _edit(folder / 'added_tokens.json', **{'[WORLD]': size})
  if 'added_tokens_decoder' in settings:
    settings = {'added_tokens_decoder': {str(size): _TOKEN}}
  _edit(folder / 'tokenizer_config.json', **settings)
  texts = [*_TEXTS, 'hello </s> hello', 'hello [WORLD]']
  want = transformers.AutoTokenizer.from_pretrained(folder)(texts)['input_ids']
  ragged = data.Tokenizer.load(folder).encode(texts, max_length=512)
  assert ragged.ids.tolist() == [i for row in want for i in row]


@pytest.mark.parametrize('lower', [True, False])
def test_berts_class_builds_its_normaliser_from_the_settings(tmp_path, lower):
  folder = _backbone(tmp_path / 'plain', 'bert', _words('<s> $A </s>'), 0)
  _edit(folder / 'tokenizer_config.json', tokenizer_class='BertTokenizer',
        do_lower_case=lower, cls_token='<s>', sep_token='</s>')
  texts = [*_TEXTS, 'PARIS Rome', 'Ärger']
  want = transformers.AutoTokenizer.from_pretrained(folder)(texts)['input_ids']
  ragged = data.Tokenizer.load(folder).encode(texts, max_length=512)
  assert ragged.ids.tolist() == [i for row in want for i in row]


_WORDS = [*_TEXTS, "  don't 12345 中文", 'x\ny  Ärger </s> z']


def _unigram(single):
  fast = tokenizers.Tokenizer(models.Unigram())
  fast.normalizer = normalizers.NFKC()
  fast.pre_tokenizer = pre_tokenizers.Metaspace()
  fast.train_from_iterator(_WORDS * 3, trainers.UnigramTrainer(
      vocab_size=120, special_tokens=['<s>', '<pad>', '</s>', '<unk>'],
      unk_token='<unk>', show_progress=False))
  return _wrapped(fast, single, pad_token='<pad>', unk_token='<unk>')


def _marked(single):
  """Sentencepiece's words as Llama had them: a normaliser, no splitting."""
  fast = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True))
  fast.normalizer = normalizers.Sequence([
      normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
  fast.train_from_iterator(_WORDS * 3, trainers.BpeTrainer(
      vocab_size=250, special_tokens=['<s>', '<pad>', '</s>', '<unk>'],
      show_progress=False))
  return _wrapped(fast, single, pad_token='<pad>', unk_token='<unk>')


@pytest.mark.parametrize(('make', 'model_type', 'settings'), [
    (_bytes, 'qwen2', {}),  # splits numbers into digits, whatever class is named
    (_bytes, 'qwen2', {'add_prefix_space': True}),
    (_bytes, 'qwen3', {}),
    (_bytes, 'qwen3', {'tokenizer_class': 'RobertaTokenizerFast'}),
    (_bytes, 'llama', {'tokenizer_class': 'GPT2Tokenizer', 'add_prefix_space': True}),
    (_bytes, 'llama', {'tokenizer_class': 'LlamaTokenizer'}),  # as it stands: bytes
    (_bytes, 'modernbert', {'tokenizer_class': 'RobertaTokenizer'}),
    (_bytes, 'roberta', {'tokenizer_class': None, 'pad_token': None}),
    (_marked, 'llama', {'tokenizer_class': 'LlamaTokenizerFast'}),
    (_marked, 'llama', {'tokenizer_class': 'LlamaTokenizer', 'legacy': True}),
    (_marked, 'mistral', {'tokenizer_class': 'LlamaTokenizer'}),
    (_marked, 'gemma3_text', {'tokenizer_class': 'GemmaTokenizer'}),
    (_marked, 'phi3', {'tokenizer_class': 'LlamaTokenizer'}),
    (_unigram, 'xlm-roberta', {'tokenizer_class': None}),
    (_unigram, 'bert', {'tokenizer_class': 'XLMRobertaTokenizer'}),
    (_words, 'mpnet', {'tokenizer_class': None, 'do_lower_case': False}),
    (_words, 'bert', {'tokenizer_class': 'NoSuchTokenizer'})])
def test_a_class_of_transformers_builds_its_own_pipeline(tmp_path, make, model_type,
                                                         settings):
  make('<s> $A').save_pretrained(tmp_path)
  _edit(tmp_path / 'tokenizer_config.json', **settings)
  _edit(tmp_path / 'config.json', model_type=model_type)
  want = transformers.AutoTokenizer.from_pretrained(tmp_path)(_WORDS)['input_ids']
  ragged = data.Tokenizer.load(tmp_path).encode(_WORDS, max_length=512)
  assert ragged.ids.tolist() == [i for row in want for i in row]


@pytest.mark.parametrize(('make', 'name', 'message'), [
    (_words, 'RobertaTokenizer', 'a BPE tokenizer, but tokenizer.json holds WordPiece'),
    (_bytes, 'BertTokenizer', 'a WordPiece tokenizer'),
    (_unigram, 'DebertaV2Tokenizer', 'tokenizer_class=.DebertaV2Tokenizer. splits')])
def test_a_class_that_contradicts_the_vocabulary_is_refused(tmp_path, make, name,
                                                            message):
  make('<s> $A').save_pretrained(tmp_path)
  _edit(tmp_path / 'tokenizer_config.json', tokenizer_class=name)
  with pytest.raises(UnsupportedModel, match=f'{message}.*TokenizersBackend'):
    data.Tokenizer.load(tmp_path)


def test_tokens_drawn_at_random_are_refused(tmp_path):
  _bytes('<s> $A').save_pretrained(tmp_path)
  spec = json.loads((tmp_path / 'tokenizer.json').read_text())
  spec['model']['dropout'] = 0.3
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
  with pytest.raises(UnsupportedModel, match='dropout=0.3.*at random'):
    data.Tokenizer.load(tmp_path)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ({'use_bidirectional_attention': True}, 'is_causal: false')])
def test_keys_that_transformers_reads_otherwise_are_refused(tmp_path, fields, message):
  folder = _plain(tmp_path)
  _edit(folder / 'config.json', **fields)
  with pytest.raises(UnsupportedModel, match=message):
    bundle.open(folder, weights=False)


def test_a_rotary_model_reads_beyond_its_positions_if_its_author_says(tmp_path):
  from sentence_transformers.base.modules import Transformer
  from sentence_transformers.sentence_transformer.modules import Pooling

  first = Transformer(str(_plain(tmp_path)))
  st.SentenceTransformer(modules=[first, Pooling(_WIDTH, 'mean')],
                         device='cpu').save(str(tmp_path / 'model'))
  _edit(tmp_path / 'model/sentence_bert_config.json', max_seq_length=100)
  model = bundle.open(tmp_path / 'model')
  text = [_TEXTS[3] * 4]
  ragged = model.load_tokenizer().encode(text, max_length=model.cfg.max_length)
  assert ragged.lengths[0] == 100 > model.cfg.backbone.max_positions
  got = np.asarray(_encode(model.params, model.cfg,
                           model.load_tokenizer().pad(ragged, 100)))
  want = _reference(tmp_path / 'model', text)
  assert np.abs(got - want).max() <= 1e-6 * max(np.abs(want).max(), 1.0)


def test_token_types_of_a_single_text_are_refused(tmp_path):
  folder = _backbone(tmp_path / 'plain', 'bert', _words('<s>:0 $A:1 </s>:1'), 0)
  with pytest.raises(UnsupportedModel, match='token type other than 0'):
    bundle.open(folder).load_tokenizer()


def test_an_ending_that_versions_of_transformers_see_differently_is_told(tmp_path):
  folder = _backbone(tmp_path / 'plain', 'mistral', _bytes('<s> $A'), 0)
  _edit(folder / 'tokenizer_config.json', add_eos_token=True)
  with pytest.warns(UserWarning, match='add_eos_token is true.*tokenizer.json decides'):
    data.Tokenizer.load(folder)


def test_two_modules_of_one_name_are_refused(folder, tmp_path):
  copy = _copy(folder, tmp_path)
  entries = json.loads((copy / 'modules.json').read_text())
  (copy / 'modules.json').write_text(json.dumps([e | {'name': 'x'} for e in entries]))
  with pytest.raises(UnsupportedModel, match="the name 'x'.*keeps one"):
    bundle.open(copy, weights=False)


def test_short_names_of_activations_and_default_prompts_of_every_model(folder,
                                                                      tmp_path):
  copy = _copy(folder, tmp_path)
  _edit(_module(copy, 'Dense') / 'config.json', activation_function='torch.nn.GELU')
  _edit(copy / 'config_sentence_transformers.json', default_prompt_name='document')
  _agree(copy, _TEXTS)
