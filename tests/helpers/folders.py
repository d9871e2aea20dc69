"""Small folders as transformers and sentence-transformers write them."""

import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

TEXTS = ['The cat sat on the mat.', 'a', 'Stocks FELL sharply on Monday </s> <pad>',
          'Paris is the capital of France, and Rome of Italy; ' * 3,
          'hello [UNK] world']
WIDTH, LENGTH = 32, 24
FAMILIES = {
    'bert': {}, 'roberta': {'type_vocab_size': 1}, 'mpnet': {}, 'xlm-roberta': {},
    'modernbert': {'local_attention': 8}, 'mistral': {'sliding_window': 6},
    'qwen2': {}, 'gemma3_text': {'head_dim': 16, 'sliding_window': 6}, 'llama': {},
    't5': {'d_ff': 48, 'd_kv': 8}, 'nomic_bert': {}, 'albert': {'embedding_size': 16}}


def words(single: str, **settings):
  """A lower-casing word-piece tokenizer, as BERT has."""
  fast = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  fast.normalizer = normalizers.BertNormalizer(lowercase=True)
  fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  fast.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(
      vocab_size=300, special_tokens=['[PAD]', '[UNK]', '<s>', '</s>'],
      show_progress=False))
  return wrapped(fast, single, pad_token='[PAD]', unk_token='[UNK]', **settings)


def byte_pairs(single: str, **settings):
  """A cased byte-level tokenizer, as RoBERTa and decoders have."""
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  fast.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(
      vocab_size=400, special_tokens=['<s>', '<pad>', '</s>', '<unk>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  return wrapped(fast, single, pad_token='<pad>', unk_token='<unk>', **settings)


def wrapped(fast, single, **settings):
  names = [t for t in ('<s>', '</s>') if t in single]
  if names:
    fast.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(t, fast.token_to_id(t)) for t in names])
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=fast, bos_token='<s>', eos_token='</s>', **settings)


def backbone(folder, family, tokenizer, seed, dtype='float32', **fields):
  torch.manual_seed(seed)
  sizes = {'vocab_size': len(tokenizer), 'hidden_size': WIDTH, 'num_hidden_layers': 2,
           'intermediate_size': 48, 'num_attention_heads': 4,
           'max_position_embeddings': 64, 'pad_token_id': tokenizer.pad_token_id}
  if family in ('mistral', 'qwen2', 'gemma3_text', 'llama'):
    sizes['num_key_value_heads'] = 2
  model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(
      family, **sizes, **FAMILIES[family], **fields))
  with torch.no_grad():
    for p in model.parameters():
      p.add_(torch.randn_like(p) * 0.1)
  model.to(getattr(torch, dtype)).save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder


def edit(file, **fields):
  data = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(data | fields))
