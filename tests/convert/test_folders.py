"""Folders that sentence-transformers itself writes: the same vectors, or a refusal.

Each number draws a family, a tokenizer, poolings, modules behind them in some order,
a layout, a padding side, a dtype and a prompt. The reference computes every text on
its own, so that padding has no part in it.
"""

import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from jaxembed import bundle
from jaxembed.models import encoder

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
  names = [t for t in ('<s>', '</s>') if t in single.split()]
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


@pytest.mark.parametrize('number', [
    n if n < 12 else pytest.param(n, marks=pytest.mark.slow) for n in range(72)])
def test_vectors_are_those_of_sentence_transformers(tmp_path, number):
  folder, prompt = _folder(tmp_path, number)
  _agree(folder, _TEXTS, prompt)
