"""Tokenizers as transformers builds them from a folder: the same ids, or a refusal."""

import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from jaxembed import bundle, data
from jaxembed.convert.fields import UnsupportedModel
from tests.helpers.folders import TEXTS, backbone, byte_pairs, edit, words, wrapped

transformers = pytest.importorskip('transformers')

_WORDS = [*TEXTS, "  don't 12345 中文", 'x\ny  Ärger </s> z']
_TOKEN = {'content': '[WORLD]', 'lstrip': False, 'rstrip': False, 'special': True,
          'normalized': False, 'single_word': False}


@pytest.mark.parametrize('settings', [
    {'split_special_tokens': True},
    {'cls_token': 'hello'},  # a word becomes a special token
    {'mask_token': '[WORLD]'}, {'extra_special_tokens': ['[WORLD]']},
    {'added_tokens_decoder': _TOKEN}, {'added_tokens.json': True}])
def test_settings_of_the_tokenizer_are_applied(tmp_path, settings):
  folder = backbone(tmp_path / 'plain', 'bert', words('<s> $A </s>'), 0)
  size = transformers.AutoTokenizer.from_pretrained(folder).vocab_size
  if settings.pop('added_tokens.json', False):
    edit(folder / 'added_tokens.json', **{'[WORLD]': size})
  if 'added_tokens_decoder' in settings:
    settings = {'added_tokens_decoder': {str(size): _TOKEN}}
  edit(folder / 'tokenizer_config.json', **settings)
  texts = [*TEXTS, 'hello </s> hello', 'hello [WORLD]']
  want = transformers.AutoTokenizer.from_pretrained(folder)(texts)['input_ids']
  ragged = data.Tokenizer.load(folder).encode(texts, max_length=512)
  assert ragged.ids.tolist() == [i for row in want for i in row]


@pytest.mark.parametrize('lower', [True, False])
def test_berts_class_builds_its_normaliser_from_the_settings(tmp_path, lower):
  folder = backbone(tmp_path / 'plain', 'bert', words('<s> $A </s>'), 0)
  edit(folder / 'tokenizer_config.json', tokenizer_class='BertTokenizer',
       do_lower_case=lower, cls_token='<s>', sep_token='</s>')
  texts = [*TEXTS, 'PARIS Rome', 'Ärger']
  want = transformers.AutoTokenizer.from_pretrained(folder)(texts)['input_ids']
  ragged = data.Tokenizer.load(folder).encode(texts, max_length=512)
  assert ragged.ids.tolist() == [i for row in want for i in row]


def _unigram(single, special=('<s>', '<pad>', '</s>', '<unk>'), **tokens):
  tokens = {'pad_token': '<pad>', 'unk_token': '<unk>'} | tokens
  fast = tokenizers.Tokenizer(models.Unigram())
  fast.normalizer = normalizers.NFKC()
  fast.pre_tokenizer = pre_tokenizers.Metaspace()
  fast.train_from_iterator(_WORDS * 3, trainers.UnigramTrainer(
      vocab_size=120, special_tokens=[*special], unk_token=tokens['unk_token'],
      show_progress=False))
  return wrapped(fast, single, **tokens)


def _of_t5(single):
  return _unigram('$A', ('<pad>', '</s>', '<unk>'))


def _of_albert(single):
  return _unigram('$A', ('<pad>', '<unk>', '[CLS]', '[SEP]', '[MASK]'))


def _of_deberta(single):
  return _unigram('$A', ('[PAD]', '[CLS]', '[SEP]', '[UNK]', '[MASK]'),
                  pad_token='[PAD]', unk_token='[UNK]')


def _of_camembert(single):
  return _unigram('$A', ('<s>NOTUSED', '<pad>', '</s>NOTUSED', '<unk>',
                         '<unk>NOTUSED', '<s>', '</s>', '<mask>'))


def _marked(single):
  """Sentencepiece's words as Llama had them: a normaliser, no splitting."""
  fast = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True))
  fast.normalizer = normalizers.Sequence([
      normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
  fast.train_from_iterator(_WORDS * 3, trainers.BpeTrainer(
      vocab_size=250, special_tokens=['<s>', '<pad>', '</s>', '<unk>'],
      show_progress=False))
  return wrapped(fast, single, pad_token='<pad>', unk_token='<unk>')


@pytest.mark.parametrize(('make', 'model_type', 'settings'), [
    (byte_pairs, 'qwen2', {}),  # splits numbers into digits, whatever class is named
    (byte_pairs, 'qwen2', {'add_prefix_space': True}),
    (byte_pairs, 'qwen3', {}),
    (byte_pairs, 'qwen3', {'tokenizer_class': 'RobertaTokenizerFast'}),
    (byte_pairs, 'llama',
     {'tokenizer_class': 'GPT2Tokenizer', 'add_prefix_space': True}),
    (byte_pairs, 'llama', {'tokenizer_class': 'LlamaTokenizer'}),  # as it stands: bytes
    (byte_pairs, 'modernbert', {'tokenizer_class': 'RobertaTokenizer'}),
    (byte_pairs, 'roberta', {'tokenizer_class': None, 'pad_token': None}),
    (_marked, 'llama', {'tokenizer_class': 'LlamaTokenizerFast'}),
    (_marked, 'llama', {'tokenizer_class': 'LlamaTokenizer', 'legacy': True}),
    (_marked, 'mistral', {'tokenizer_class': 'LlamaTokenizer'}),
    (_marked, 'gemma3_text', {'tokenizer_class': 'GemmaTokenizer'}),
    (_marked, 'phi3', {'tokenizer_class': 'LlamaTokenizer'}),
    (_marked, 'gemma3', {'tokenizer_class': None}),
    (_marked, 'ministral3', {'tokenizer_class': 'LlamaTokenizer'}),
    (byte_pairs, 'granite', {'tokenizer_class': 'GPT2Tokenizer'}),
    (byte_pairs, 'olmo', {'tokenizer_class': 'GPTNeoXTokenizer'}),
    (byte_pairs, 'olmo', {'add_bos_token': True, 'tokenizer_class': None}),
    (byte_pairs, 'phi', {'tokenizer_class': None}),
    (_unigram, 'xlm-roberta', {'tokenizer_class': None}),
    (_unigram, 'bert', {'tokenizer_class': 'XLMRobertaTokenizer'}),
    (_unigram, 'gte', {'tokenizer_class': None}),
    (_unigram, 'umt5', {'tokenizer_class': 'T5Tokenizer'}),
    (_of_t5, 't5', {'tokenizer_class': 'T5TokenizerFast', 'extra_ids': 0}),
    (_of_t5, 'mt5', {'tokenizer_class': None}),
    (_of_albert, 'albert', {'tokenizer_class': 'AlbertTokenizer'}),
    (_of_albert, 'albert', {'tokenizer_class': None, 'do_lower_case': False,
                            'keep_accents': True}),
    (_of_deberta, 'deberta-v2', {'tokenizer_class': 'DebertaV2Tokenizer'}),
    (_of_deberta, 'deberta-v2', {'tokenizer_class': None, 'do_lower_case': True,
                                 'split_by_punct': True, 'add_prefix_space': False}),
    (_of_camembert, 'camembert', {'tokenizer_class': 'CamembertTokenizer'}),
    (words, 'nomic_bert',
     {'tokenizer_class': None, 'cls_token': '<s>', 'sep_token': '</s>'}),
    (words, 'mpnet', {'tokenizer_class': None, 'do_lower_case': False}),
    (words, 'bert', {'tokenizer_class': 'NoSuchTokenizer'})])
def test_a_class_of_transformers_builds_its_own_pipeline(tmp_path, make, model_type,
                                                         settings):
  make('<s> $A').save_pretrained(tmp_path)
  edit(tmp_path / 'tokenizer_config.json', **settings)
  edit(tmp_path / 'config.json', model_type=model_type)
  want = transformers.AutoTokenizer.from_pretrained(tmp_path)(_WORDS)['input_ids']
  ragged = data.Tokenizer.load(tmp_path).encode(_WORDS, max_length=512)
  assert ragged.ids.tolist() == [i for row in want for i in row]


@pytest.mark.parametrize(('make', 'name', 'message'), [
    (words, 'RobertaTokenizer', 'a BPE tokenizer, but tokenizer.json holds WordPiece'),
    (byte_pairs, 'BertTokenizer', 'a WordPiece tokenizer'),
    (_unigram, 'T5Tokenizer', 'lacks the id 2, but tokenizer.json 3'),
    (_unigram, 'MBartTokenizer', 'tokenizer_class=.MBartTokenizer. splits')])
def test_a_class_that_contradicts_the_vocabulary_is_refused(tmp_path, make, name,
                                                            message):
  make('<s> $A').save_pretrained(tmp_path)
  edit(tmp_path / 'tokenizer_config.json', tokenizer_class=name)
  with pytest.raises(UnsupportedModel, match=f'{message}.*TokenizersBackend'):
    data.Tokenizer.load(tmp_path)


def test_tokens_drawn_at_random_are_refused(tmp_path):
  byte_pairs('<s> $A').save_pretrained(tmp_path)
  spec = json.loads((tmp_path / 'tokenizer.json').read_text())
  spec['model']['dropout'] = 0.3
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
  with pytest.raises(UnsupportedModel, match='dropout=0.3.*at random'):
    data.Tokenizer.load(tmp_path)


def test_token_types_of_a_single_text_are_refused(tmp_path):
  folder = backbone(tmp_path / 'plain', 'bert', words('<s>:0 $A:1 </s>:1'), 0)
  with pytest.raises(UnsupportedModel, match='token type other than 0'):
    bundle.open(folder).load_tokenizer()


def test_an_ending_that_versions_of_transformers_see_differently_is_told(tmp_path):
  folder = backbone(tmp_path / 'plain', 'mistral', byte_pairs('<s> $A'), 0)
  edit(folder / 'tokenizer_config.json', add_eos_token=True)
  with pytest.warns(UserWarning, match='add_eos_token is true.*tokenizer.json decides'):
    data.Tokenizer.load(folder)
